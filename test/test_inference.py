from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

from openvla_ros.errors import ImageError
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros.frames import Frame
from openvla_ros.ros.inference import (
    Predictor,
    empty_gpu_cache,
    gpu_memory_bytes,
    is_out_of_memory,
    memory_hint,
)
from openvla_ros.types import Observation, Prediction


@pytest.mark.parametrize("parts", [(), ("cuda",)])
def test_a_torch_that_is_still_being_imported_is_no_gpu(
    parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status was published while configure imported torch: AttributeError, and a traceback."""
    half = ModuleType("torch")
    for part in parts:
        setattr(half, part, ModuleType(f"torch.{part}"))
    monkeypatch.setitem(sys.modules, "torch", half)
    assert gpu_memory_bytes() == (0, 0)
    empty_gpu_cache()


def test_memory_of_a_gpu_in_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = ModuleType("torch")
    torch.cuda = ModuleType("torch.cuda")  # type: ignore[attr-defined]
    emptied = []
    torch.cuda.is_initialized = lambda: True
    torch.cuda.mem_get_info = lambda: (3, 10)
    torch.cuda.empty_cache = lambda: emptied.append(True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert gpu_memory_bytes() == (7, 10)
    empty_gpu_cache()
    assert emptied == [True]


def test_running_out_of_memory_is_recognised_without_torch() -> None:
    class OutOfMemoryError(RuntimeError):
        """Named as torch's own."""

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError())


def test_the_hint_after_running_out_of_memory_has_the_numbers_of_the_gpu() -> None:
    gib = 2**30
    hint = memory_hint(15 * gib, 16 * gib)
    assert "15.0 of 16.0 GiB" in hint and "1.0 GiB are free" in hint and "quantization" in hint
    assert "GiB" not in memory_hint(0, 0), "there is no GPU to speak of"


# Preparing ahead ----------------------------------------------------------------------------------


class Thinker(MockPolicy):
    """A mock that counts what it is asked, and fails as often as it is told."""

    def __init__(self) -> None:
        super().__init__((0.0,) * 7)
        self.prepared: list[str] = []
        self.errors: list[Exception] = []

    def prepare(self, observation: Observation) -> Observation:
        self.prepared.append(observation.instruction)
        return replace(observation, prepared=observation.instruction)

    def predict(self, observation: Observation) -> Prediction:
        assert observation.prepared == observation.instruction
        if self.errors:
            raise self.errors.pop()
        return super().predict(observation)


def frame(instruction: str = "pick") -> Frame:
    return Frame(instruction, 1, 1, 1.0, instruction, 0)


def make_predictor(policy: Thinker, decode: Callable[[Any], np.ndarray] | None = None) -> Predictor:
    ticks = itertools.count()
    return Predictor(
        policy,
        decode or (lambda message: np.zeros((4, 6, 3), np.uint8)),
        (0, 0, 0, 0),
        lambda: next(ticks) * 0.001,  # every look at the clock costs a millisecond
        logging.getLogger("test"),
    )


def test_what_was_prepared_is_not_prepared_again_and_its_cost_is_told() -> None:
    policy = Thinker()
    predictor, early = make_predictor(policy), frame()
    predictor.prepare(early)
    measured = predictor.predict(early)
    assert policy.prepared == ["pick"]
    assert (measured.preprocess_ms, measured.inference_ms) == pytest.approx((1.0, 2.0))
    assert measured == replace(make_predictor(Thinker()).predict(early), prediction=ANY)


def test_what_was_prepared_serves_no_other_frame() -> None:
    """~/predict_once takes the same image with the instruction of now."""
    policy = Thinker()
    predictor, early = make_predictor(policy), frame("pick")
    predictor.prepare(early)
    prediction = predictor.predict(replace(early, instruction="place")).prediction
    assert prediction.prompt.endswith("place")
    assert policy.prepared == ["pick", "place"]


def test_an_image_that_cannot_be_prepared_fails_where_it_is_predicted() -> None:
    def decode(message: Any) -> np.ndarray:
        raise ImageError("damaged")

    predictor, early = make_predictor(Thinker(), decode), frame()
    predictor.prepare(early)
    with pytest.raises(ImageError, match="damaged"):
        predictor.predict(early)


def test_running_out_of_memory_once_does_not_decode_twice() -> None:
    policy, decoded = Thinker(), []

    def decode(message: Any) -> np.ndarray:
        decoded.append(message)
        return np.zeros((4, 6, 3), np.uint8)

    policy.errors = [MemoryError("fragmented")]
    make_predictor(policy, decode).predict(frame())
    assert len(decoded) == len(policy.prepared) == 1
    policy.errors = [MemoryError("full")] * 2
    with pytest.raises(MemoryError, match="full"):
        make_predictor(policy, decode).predict(frame())


def test_a_prediction_waits_for_the_thread_that_prepares_its_frame_and_for_no_other() -> None:
    """With one lock for all frames, whoever looked ahead overtook it: answers came 0.4 s late."""
    policy, began, may_go_on = Thinker(), threading.Event(), threading.Event()

    def decode(message: Any) -> np.ndarray:
        if message == "pick":
            began.set()
            assert may_go_on.wait(10.0)
        return np.zeros((4, 6, 3), np.uint8)

    predictor, early, answers = make_predictor(policy, decode), frame(), []
    ahead = threading.Thread(target=predictor.prepare, args=[early])
    ahead.start()
    assert began.wait(10.0)
    predictor.predict(frame("another"))
    predicting = threading.Thread(target=lambda: answers.append(predictor.predict(early)))
    predicting.start()
    may_go_on.set()
    for thread in (ahead, predicting):
        thread.join(10.0)
    assert len(answers) == 1
    assert policy.prepared == ["another", "pick"]
