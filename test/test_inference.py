from __future__ import annotations

import sys
from types import ModuleType

import pytest

from openvla_ros.ros.inference import (
    empty_gpu_cache,
    gpu_memory_bytes,
    is_out_of_memory,
    memory_hint,
)


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
