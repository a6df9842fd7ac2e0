"""Of several kernels for the same thing the first is chosen, unless another is clearly better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from openvla_ros.engine import triton_choice
from openvla_ros.engine.low_bit import LowBitMatrix, why_not
from openvla_ros.engine.triton_launch import TABLES, tiles_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_chosen_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_choice, "_chosen", {})
    monkeypatch.setattr(triton_choice, "_reports", {})
    yield


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Choose among runs whose times are given instead of measured."""

    def choose(runs: dict[str, Callable[[], torch.Tensor]], **microseconds: float) -> str:
        spent = {id(run): microseconds.get(name, 0.0) for name, run in runs.items()}
        monkeypatch.setattr(triton_choice, "_refusals", lambda: (RuntimeError,))
        monkeypatch.setattr(triton_choice, "_evict", lambda device: lambda: None)
        monkeypatch.setattr(
            triton_choice, "_microseconds", lambda evict, run: 5.0 + spent.get(id(run), 0.0)
        )
        return triton_choice._measured("product", runs, CPU)

    return choose


def right() -> torch.Tensor:
    return torch.ones(4)


def also_right() -> torch.Tensor:
    return torch.full((4,), 1.001)


def wrong() -> torch.Tensor:
    return torch.full((4,), 1.1)


def not_a_number() -> torch.Tensor:
    return torch.full((4,), float("nan"))


def too_large() -> torch.Tensor:
    raise RuntimeError("out of resource: shared memory")


def test_clearly_faster_is_chosen(measure: Any) -> None:
    assert measure({"first": right, "other": also_right}, first=10.0, other=8.9) == "other"


def test_a_little_faster_changes_nothing(measure: Any) -> None:
    """Noise must not change the order of sums, and with it bits, from one start to the next."""
    assert measure({"first": right, "other": also_right}, first=10.0, other=9.1) == "first"


@pytest.mark.parametrize("other", [wrong, not_a_number, too_large])
def test_what_is_wrong_or_does_not_run_is_out(other: Any, measure: Any) -> None:
    assert measure({"first": right, "other": other}, first=10.0, other=1.0) == "first"
    assert "10.0 us" in triton_choice.reports()["product"]


def test_another_stands_in_for_a_first_that_does_not_run(measure: Any) -> None:
    assert measure({"first": too_large, "other": right}, other=10.0) == "other"


def test_nothing_replaces_a_first_whose_result_cannot_be_compared(measure: Any) -> None:
    assert measure({"first": not_a_number, "other": right}, first=10.0, other=1.0) == "first"


def test_none_that_runs_is_an_error(measure: Any) -> None:
    with pytest.raises(RuntimeError, match="No kernel for product runs"):
        measure({"first": too_large})


def test_the_first_is_used_where_nothing_can_be_measured(
    measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runs: object, device: object) -> dict[str, float]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(triton_choice, "_spent", fail)
    assert measure({"first": too_large, "other": right, "third": right}) == "other"
    assert "not permitted" in triton_choice.reports()["product"]


def test_one_choice_for_all_calls_and_the_first_where_nothing_is_measured() -> None:
    runs = {"first": right, "other": also_right}
    assert triton_choice.choose("product", runs, CPU) == "first"
    assert triton_choice.choose("product", {"other": also_right}, CPU) == "first"


SHAPES = [(12288, 4096), (4096, 11008), (1024, 2752), (256, 384)]
FITTING = [(kind, shape) for kind in TABLES for shape in SHAPES if not why_not(kind, shape)]


@pytest.mark.parametrize("kind, shape", FITTING)
def test_every_tile_divides_its_matrix(kind: str, shape: tuple[int, int]) -> None:
    empty = torch.empty(shape, device="meta")
    low: Any = LowBitMatrix(kind, empty, empty, shape, torch.bfloat16)
    for name in TABLES[kind]:
        tiles = tiles_of(name, empty if kind == "none" else low)
        assert tiles
        for tile in tiles:
            assert shape[0] % tile.block_n == 0
            assert kind == "int4" or shape[1] % (tile.block_k * tile.splits) == 0
