"""What a run measures, and how often: filled in by profile and device where nobody said.

This file knows numbers and names, no model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from openvla_ros.errors import ConfigurationError

PROFILES = ("tiny", "small", "7b")
PROCESSES = ("auto", "shared", "separate")
#: Names that x86 and Arm give to products of bfloat16.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_CPUINFO = Path("/proc/cpuinfo")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Amounts:
    """How often, on how many images.

    Attributes:
        calls: Timed calls of an engine per round.
        hf_calls: Timed calls of a Hugging Face variant per round.
        rounds: Rounds, each of which visits every variant.
        images: Different images to rotate through.
        draft_images: Images of the curve over accepted drafts; 0 leaves it out.
        exactness_images: Other images, on which drafts are compared with plain decoding.
        margin_images: Images on which a float32 copy judges every variant's ids; 0 leaves it out.
        busy_cores: Cores kept busy in an extra measurement of the engine; 0 leaves it out.
    """

    calls: int
    hf_calls: int
    rounds: int
    images: int
    draft_images: int
    exactness_images: int
    margin_images: int
    busy_cores: int


_ON_GPU = Amounts(100, 15, 3, 32, 32, 100, 16, 2)
_ON_CPU = {
    "tiny": Amounts(10, 10, 3, 4, 4, 8, 4, 0),
    "small": Amounts(8, 8, 3, 6, 4, 4, 4, 0),
    "7b": Amounts(2, 2, 1, 2, 1, 0, 0, 0),  # an action takes seconds
}
#: What `7b` measures on a CPU unless told otherwise: each variant takes minutes to build there.
_ON_CPU_AT_FULL_SIZE = ("hf_sdpa", "ours_plain", "ours_int8")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        profile: One of `PROFILES`.
        device: "cpu", "cuda" or "cuda:N".
        dtype: One of `DTYPES`.
        why_dtype: Why this one.
        amounts: How often.
        only: Variants to measure; empty means all that the machine can run.
        skip: Variants to leave out.
        processes: One of `PROCESSES`: all variants in one process, in turns; a process for each;
            or whichever the memory allows.
    """

    profile: str
    device: str
    dtype: str
    why_dtype: str
    amounts: Amounts
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    processes: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Return the plan that `as_dict` described."""
        lists = {name: tuple(values[name]) for name in ("only", "skip")}
        return cls(**(values | lists | {"amounts": Amounts(**values["amounts"])}))


def make_plan(
    profile: str,
    device: torch.device,
    dtype: str = "auto",
    *,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    processes: str = "auto",
    amounts: dict[str, int] | None = None,
) -> Plan:
    """Return what to measure, with defaults that end within ten minutes.

    Args:
        profile: One of `PROFILES`.
        device: Where.
        dtype: "auto" or one of `DTYPES`.
        only: Names of variants; empty is every one, or three for `7b` on a CPU.
        skip: Names of variants to leave out.
        processes: One of `PROCESSES`.
        amounts: Fields of `Amounts` that differ from the defaults.

    Raises:
        ConfigurationError: Unknown profile, dtype or way, or an amount that makes no sense.
    """
    check_profile(profile)
    if processes not in PROCESSES:
        raise ConfigurationError(
            f"processes {processes!r} is unknown; use one of {', '.join(PROCESSES)}."
        )
    on_cpu = device.type == "cpu"
    defaults = _ON_CPU[profile] if on_cpu else _ON_GPU
    chosen = Amounts(**(asdict(defaults) | (amounts or {})))
    least = {"calls": 1, "hf_calls": 1, "rounds": 1, "images": 1}
    for name, value in asdict(chosen).items():
        if value < least.get(name, 0):
            raise ConfigurationError(f"{name} is {value}; give at least {least.get(name, 0)}.")
    if on_cpu and profile == "7b" and not only:
        only = tuple(name for name in _ON_CPU_AT_FULL_SIZE if name not in skip)
    number, why = _choose_dtype(profile, device, dtype)
    return Plan(profile, str(device), number, why, chosen, only, skip, processes)


def check_profile(profile: str) -> None:
    """Return if there is such a profile.

    Raises:
        ConfigurationError: There is none.
    """
    if profile not in PROFILES:
        raise ConfigurationError(f"The profile {profile!r} is unknown; use one of {PROFILES}.")


def _choose_dtype(profile: str, device: torch.device, dtype: str) -> tuple[str, str]:
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ConfigurationError(f"dtype {dtype!r} is unknown; use auto, {', '.join(DTYPES)}.")
        return dtype, "requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "what the checkpoints were published in"
        return "float16", "this GPU has no bfloat16"
    if profile == "tiny":
        return "float32", "exact, and small enough"
    if profile == "7b":
        return "bfloat16", "float32 weights would take 30 GB"
    if cpu_flags() & BF16_FLAGS:
        return "bfloat16", "this CPU multiplies it"
    return "float32", "this CPU does not multiply bfloat16"


def cpu_flags() -> set[str]:
    """Return what the processor says it can do; empty where Linux does not tell."""
    if not _CPUINFO.exists():
        return set()
    for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.split(":", 1)[1].split())
    return set()
