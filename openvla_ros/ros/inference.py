"""One camera message → one prediction, with its cost. Runs in the threads of the worker."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.messages import crop
from openvla_ros.ros.decoding import Decoder
from openvla_ros.ros.frames import Frame
from openvla_ros.types import PRIMARY, Observation, Policy, Prediction


@dataclass(frozen=True)
class Measured:
    """A prediction and its cost in milliseconds: message → RGB, and the policy's two calls.

    What was prepared ahead is counted too, although nobody waited for it.
    """

    prediction: Prediction
    preprocess_ms: float
    inference_ms: float


@dataclass(frozen=True)
class Prepared:
    """A frame as the policy takes it, and the cost of that in milliseconds."""

    observation: Observation
    decode_ms: float
    prepare_ms: float


class Predictor:
    """Decodes, crops, and asks the policy. Another thread may prepare while one predicts."""

    def __init__(
        self,
        policy: Policy,
        decode: Decoder,
        roi: tuple[int, ...],
        steady_s: Callable[[], float],
        log: Any,
    ) -> None:
        self._policy = policy
        self._decode = decode
        self._roi = roi
        self._steady_s = steady_s
        self._log = log

    def prepare(self, frame: Frame) -> None:
        """Do early what `predict` would do first; the frame keeps it."""
        with contextlib.suppress(Exception):  # `predict` meets it again, and raises it
            self._prepared(frame)

    def predict(self, frame: Frame) -> Measured:
        """Return the policy's answer to a frame.

        Raises:
            ImageError: The message cannot be decoded, or `image_roi` does not fit it.
            Exception: Whatever the policy raises; running out of memory only the second time.
        """
        try:
            return self._measured(frame)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._log.warning(f"out of memory; emptying the cache, then once more: {error}")
        empty_gpu_cache()
        return self._measured(frame)

    def view(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Return the picture of a frame, and what the network gets of it.

        Both are (H, W, 3) uint8 RGB. For people: any thread may ask.

        Raises:
            ImageError: The message cannot be decoded, or `image_roi` does not fit it.
        """
        picture = self._decode(frame.message)
        return picture, self._policy.view(crop(picture, self._roi))

    def _measured(self, frame: Frame) -> Measured:
        prepared = self._prepared(frame)
        start_s = self._steady_s()
        prediction = self._policy.predict(prepared.observation)
        predict_ms = (self._steady_s() - start_s) * 1000.0
        return Measured(prediction, prepared.decode_ms, prepared.prepare_ms + predict_ms)

    def _prepared(self, frame: Frame) -> Prepared:
        """Return a frame prepared now or before; waits when another thread is preparing it."""
        # A lock for each frame: one for all would let whoever looks ahead overtake who waits here.
        with frame.preparation.lock:
            if frame.preparation.result is None:
                frame.preparation.result = self._prepare(frame)
            return frame.preparation.result

    def _prepare(self, frame: Frame) -> Prepared:
        start_s = self._steady_s()
        image = crop(self._decode(frame.message), self._roi)
        decoded_s = self._steady_s()
        observation = self._policy.prepare(
            Observation(
                images={PRIMARY: image}, instruction=frame.instruction, stamp_ns=frame.stamp_ns
            )
        )
        return Prepared(
            observation,
            decode_ms=(decoded_s - start_s) * 1000.0,
            prepare_ms=(self._steady_s() - decoded_s) * 1000.0,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """True for MemoryError, and for torch's own error, told by its name: torch may be absent."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def empty_gpu_cache() -> None:
    """Give cached GPU memory back, when this process uses a GPU."""
    cuda = _cuda_in_use()
    if cuda is not None:
        cuda.empty_cache()


def gpu_memory_bytes() -> tuple[int, int]:
    """Used and total memory of the current GPU; (0, 0) when this process uses none."""
    cuda = _cuda_in_use()
    if cuda is None:
        return 0, 0
    free, total = cuda.mem_get_info()
    return total - free, total


def memory_hint(used: int, total: int) -> str:
    """Return what to do about too little memory, with the numbers in bytes; total 0 = no GPU."""
    hint = "a smaller `quantization` needs less memory"
    if not total:
        return hint
    gib = 2.0**30
    return (
        f"{used / gib:.1f} of {total / gib:.1f} GiB of the GPU are used, "
        f"{(total - used) / gib:.1f} GiB are free; {hint}"
    )


def _cuda_in_use() -> Any | None:
    """Return torch.cuda when this process occupies a GPU already; asking must not occupy one."""
    # While another thread imports torch, the module is there and still lacks its parts.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized is not None and is_initialized() else None
