"""What the figures depend on: processor, GPU, versions, commit."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from openvla_ros.engine.bench.plan import BF16_FLAGS, cpu_flags

_LIBRARIES = ("torch", "transformers", "triton", "bitsandbytes", "torchao")
_CPUINFO = Path("/proc/cpuinfo")
_INTERESTING_FLAGS = BF16_FLAGS | {"avx2", "avx512f", "avx512_vnni", "amx_int8", "asimd", "i8mm"}
_GPU_QUERY = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total,"
    "temperature.gpu"
)
_HERE = Path(__file__).resolve().parent


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on."""
    facts: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_flags": sorted(cpu_flags() & _INTERESTING_FLAGS),
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    for name in _LIBRARIES:
        if importlib.util.find_spec(name) is not None:
            facts[name] = metadata.version(name)
    facts["torch"] = torch.__version__  # with its build, such as +cpu
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_state_before"] = gpu_state(device)
    return facts


def gpu_state(device: torch.device) -> list[str]:
    """Return what nvidia-smi says about clocks and temperature; empty without a GPU."""
    if device.type != "cuda":
        return []
    command = ["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv"]
    return _output(command).splitlines()


def _cpu_name() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of these sources, with a mark when they were changed after it."""
    return _output(["git", "-C", str(_HERE), "describe", "--always", "--dirty"]) or "unknown"


def _output(command: list[str]) -> str:
    """Return what a command prints, or nothing where it is not there or fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
