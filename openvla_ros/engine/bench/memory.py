"""How much memory is in use, and the most that was: on a GPU torch's own count, else the process's.

On Linux the process's high-water mark can be set back, so every variant gets its own. Elsewhere
nothing is measured on a CPU.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from openvla_ros.model.runtime_choices import available_ram_bytes

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): set the high-water mark to what is in use


class Memory:
    """The memory of the device that a model runs on.

    Args:
        device: CPU or GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._on_gpu = device.type == "cuda"

    def collect(self) -> None:
        """Give back what nobody uses, and set the peak to what is in use."""
        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _RESET.exists():
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
            if trim is not None:
                trim(0)  # freed pages would count as used
            _RESET.write_text(_RESET_PEAK, encoding="ascii")

    def used(self) -> int | None:
        """Return bytes in use, or None where that cannot be told."""
        if self._on_gpu:
            return torch.cuda.memory_allocated(self.device)
        return _status_bytes("VmRSS")

    def peak(self) -> int | None:
        """Return the most bytes in use since `collect`, or None where that cannot be told."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated(self.device)
        return _status_bytes("VmHWM") if _RESET.exists() else None

    def free(self) -> int:
        """Return bytes that could still be taken; 0 where that cannot be told."""
        if self._on_gpu:
            return torch.cuda.mem_get_info(self.device)[0]
        return available_ram_bytes()


def _status_bytes(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    found = next((line for line in lines if line.startswith(field + ":")), None)
    return None if found is None else int(found.split()[1]) * 1024
