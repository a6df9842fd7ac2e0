"""A checkpoint that does not fit into the free memory of a GPU is refused before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openvla_ros import policy_loading
from openvla_ros.config.policy import ModelConfig
from openvla_ros.errors import GpuMemoryError
from openvla_ros.model.gpu_memory import GIB, memory_needed, require_gpu_memory
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.inference import is_out_of_memory
from openvla_ros.ros.policies import load_policy

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


def test_memory_is_counted_per_mode() -> None:
    """Only two-dimensional weights of the decoder layers are quantised."""
    shapes = {
        "language_model.model.layers.0.mlp.up_proj.weight": (100, 10),
        "language_model.model.layers.0.input_layernorm.weight": (10,),
        "language_model.lm_head.weight": (50, 10),
        "vision_backbone.featurizer.cls_token": (1, 1, 40),
    }
    needed = memory_needed(shapes, full_bytes=2)
    assert needed["none"] == 2 * 1550
    assert needed["bnb_int8"] == 2 * 550 + 1000
    assert needed["nf4"] == 2 * 550 + 0.5625 * 1000
    assert needed["int8"] == needed["fp8"] == 2 * 550 + 1000
    assert needed["int4"] == 2 * 550 + 0.53125 * 1000


def free(gib: float):
    return lambda device: (int(gib * GIB), 24 * GIB)


def test_weights_and_a_margin_must_be_free() -> None:
    said = require_gpu_memory(GPU, 14 * GIB, mem_get_info=free(15.0))
    assert "14.00 GiB of weights" in said and "15.00 GiB are free" in said
    with pytest.raises(
        GpuMemoryError, match=r"15\.00 GiB must be free .* 14\.90 of its 24\.00 GiB"
    ):
        require_gpu_memory(GPU, 14 * GIB, mem_get_info=free(14.9))


@pytest.mark.parametrize(("wanted_gib", "is_refused"), [(20.0, True), (3.0, False)])
def test_who_knows_better_says_how_much(wanted_gib: float, is_refused: bool) -> None:
    def ask() -> str:
        return require_gpu_memory(GPU, 14 * GIB, min_free_gib=wanted_gib, mem_get_info=free(10.0))

    if not is_refused:
        assert "min_free_gpu_memory_gib" in ask()
        return
    with pytest.raises(GpuMemoryError, match=r"20\.00 GiB must be free .*min_free_gpu_memory_gib"):
        ask()


def test_a_cpu_is_not_asked() -> None:
    def must_not_ask(device: torch.device) -> tuple[int, int]:
        raise AssertionError(device)

    assert require_gpu_memory(CPU, 1e15, min_free_gib=1e3, mem_get_info=must_not_ask) == ""


@pytest.mark.parametrize(
    ("free_gib", "options"),
    [
        (0.9, {}),
        (0.9, {"quantization": "nf4"}),
        (30.0, {"min_free_gpu_memory_gib": 31.0}),
    ],
)
def test_a_full_gpu_is_refused_before_anything_is_loaded(
    reference_checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_gib: float,
    options: dict[str, object],
) -> None:
    def must_not_load(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(policy_loading, "choose_device", lambda device: (GPU, "a test"))
    for name in ("load_model", "stream"):
        monkeypatch.setattr(policy_loading, name, must_not_load)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free(free_gib))
    model = ModelConfig(
        checkpoint=str(reference_checkpoints / "A_fused"), dtype="bfloat16", **options
    )
    with pytest.raises(GpuMemoryError, match="Nothing was loaded") as caught:
        load_policy(model)
    assert is_out_of_memory(caught.value), "UNCONFIGURED GPU_OOM"


def test_a_gpu_with_room_is_loaded_and_said(
    reference_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = policy_loading.stream
    monkeypatch.setattr(policy_loading, "choose_device", lambda device: (GPU, "a test"))
    monkeypatch.setattr(policy_loading, "stream", lambda *a, **k: read(*a, **{**k, "device": CPU}))
    monkeypatch.setattr(torch.cuda, "mem_get_info", free(2.0))
    loaded = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", dtype="float32")
    assert "2.00 GiB are free" in loaded.info.choices["GPU memory"]
