"""What `openvla-ros doctor` looks at besides ROS: versions, hardware, choices, the checkpoint."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from openvla_ros import __version__
from openvla_ros.cli.keys import local_folder
from openvla_ros.cli.output import how_to_install, needs
from openvla_ros.errors import OpenVLAError
from openvla_ros.model.result_files import is_adapter, read_base_reference
from openvla_ros.types import Finding

if TYPE_CHECKING:
    from openvla_ros.model.configuration import OpenVLAConfig

GIB = 2**30
# Distribution name, extra that brings it ("" = always there), what works without it.
PACKAGES = (
    ("torch", "model", "only the mock backend"),
    ("transformers", "model", "only the mock backend"),
    ("tokenizers", "model", "only the mock backend"),
    ("safetensors", "", ""),
    ("accelerate", "model", "no loading straight onto a GPU"),
    ("peft", "model", "no adapters"),
    ("bitsandbytes", "quant", "no nf4 and bnb_int8"),
    ("numpy", "", ""),
    ("pillow", "", ""),
    ("opencv-python-headless", "", ""),
    ("simplejpeg", "", ""),
    ("rosbags", "bags", "no bags, no demo"),
)
REQUIRED = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow"}


def software_findings() -> list[Finding]:
    """Return versions of what matters, and what is missing."""
    findings = [
        Finding("software", "openvla_ros", __version__),
        Finding("software", "python", platform.python_version()),
    ]
    for name, extra, without in PACKAGES:
        version = _version(name)
        if version is None and name == "opencv-python-headless":
            version = _version("opencv-python")
        if version is not None:
            findings.append(Finding("software", name, version))
            continue
        advice = how_to_install(name, extra) if extra else f"pip install {name}"
        level = "problem" if name in REQUIRED else "warn"
        reason = f"{without}: {advice}" if without else advice
        findings.append(Finding("software", name, "not installed", reason, level))
    return findings


def hardware_findings() -> list[Finding]:
    """Return CPU, memory and every GPU, or why there is none."""
    findings = [Finding("hardware", "CPU", f"{os.cpu_count()} cores, {platform.machine()}")]
    try:
        import torch

        from openvla_ros.model.runtime_choices import available_ram_bytes, choose_device
    except ImportError:
        return [*findings, Finding("hardware", "GPU", "unknown", "torch is not installed", "warn")]
    findings.append(Finding("hardware", "memory", f"{available_ram_bytes() / GIB:.1f} GiB free"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        value = (
            f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        )
        findings.append(Finding("hardware", f"cuda:{index}", value))
    if not count:
        _, why = choose_device("auto")
        findings.append(Finding("hardware", "GPU", "none", why, "warn"))
    return findings


def choice_findings(parameters: int = 0) -> list[Finding]:
    """Return device, number format and attention as the policy would choose them, with reasons."""
    try:
        from openvla_ros.model.runtime_choices import (
            choose_attention,
            choose_device,
            choose_dtype,
            explain_quantization,
        )
    except ImportError as error:
        reason = f"{error.name} is not installed; backend:=mock still works"
        return [Finding("choices", "device", "none", reason, "problem")]
    device, why_device = choose_device("auto")
    dtype, why_dtype = choose_dtype("auto", device, parameters)
    return [
        Finding("choices", "device", str(device), why_device),
        Finding("choices", "dtype", str(dtype).removeprefix("torch."), why_dtype),
        Finding("choices", "attention", *choose_attention()),
        Finding("choices", "quantization", "none", explain_quantization()),
        Finding("choices", "exactness", "self", "the ids of the same weights decoded plainly"),
    ]


def checkpoint_findings(checkpoint: str) -> list[Finding]:
    """Return what a checkpoint needs and holds; never downloads it."""
    try:
        folder = local_folder(checkpoint, local_files_only=True)
        findings = list(_weight_findings(_base_of(folder)))
        if is_adapter(folder):
            findings.insert(0, _adapter_finding(folder))
        return [*findings, *_statistics_findings(folder)]
    except OpenVLAError as error:
        return [Finding("checkpoint", checkpoint, "not usable", str(error), "problem")]


def stored_parameter_count(checkpoint: str) -> int:
    """Return the number of weights of a local checkpoint, or 0 when that cannot be told."""
    try:
        from openvla_ros.model.checkpoint import stored_parameters

        return stored_parameters(_base_of(local_folder(checkpoint, local_files_only=True)))
    except (OpenVLAError, ImportError):
        return 0


def _base_of(folder: Path) -> Path:
    """Return the folder itself, or the base that it names when it is an adapter."""
    if not is_adapter(folder):
        return folder
    with needs("Looking for the base of an adapter"):
        from openvla_ros.model.base_reference import resolve_folders

        return resolve_folders(folder, local_files_only=True).base


def _adapter_finding(folder: Path) -> Finding:
    reference = read_base_reference(folder)
    if reference is None:
        reason = "give its base as the checkpoint: it does not name it"
        return Finding("checkpoint", "adapter", str(folder), reason, "problem")
    reason = f"its base has the fingerprint {reference.fingerprint[:16]}, as when it was trained"
    return Finding("checkpoint", "adapter", str(folder), reason)


def _weight_findings(folder: Path) -> Iterator[Finding]:
    with needs("Looking at weights"):
        import torch

        from openvla_ros.model.checkpoint import (
            expected_shapes,
            read_config,
            stored_shapes,
            verify_keys,
            weight_files,
        )
        from openvla_ros.model.gpu_memory import memory_needed
        from openvla_ros.model.runtime_choices import (
            available_ram_bytes,
            choose_device,
            choose_dtype,
        )
    config, shapes = read_config(folder), stored_shapes(folder)
    on_disk = sum(path.stat().st_size for path in weight_files(folder))
    free_disk = shutil.disk_usage(folder).free
    yield Finding(
        "checkpoint",
        "folder",
        str(folder),
        f"{on_disk / GIB:.2f} GiB of weights, {free_disk / GIB:.1f} GiB of the disk are free",
    )
    verify_keys(folder, expected_shapes(config), config)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    yield Finding("checkpoint", "weights", f"{parameters:,} in {len(shapes)} tensors", "all fit")
    device, _ = choose_device("auto")
    dtype, _ = choose_dtype("auto", device, parameters)
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_ram_bytes()
    where = str(device) if on_gpu else "memory"
    for mode, needed in memory_needed(shapes, torch.finfo(dtype).bits // 8).items():
        fits = needed < free
        reason = f"{free / GIB:.1f} GiB of {where} are free" + ("" if fits else ": too little")
        refusal = _refusal(mode, config)
        # Only the mode that runs when nobody asks for another prevents running.
        level = "ok" if fits and not refusal else "problem" if mode == "none" else "warn"
        value = f"{needed / GIB:.2f} GiB of weights"
        yield Finding("checkpoint", f"quantization {mode}", value, refusal or reason, level)


def _refusal(mode: str, config: OpenVLAConfig) -> str:
    """Why a mode cannot run here, or ""."""
    from openvla_ros.engine.requirements import require_quantization

    try:
        require_quantization(mode, config)
    except OpenVLAError as error:
        return str(error)
    return ""


def _statistics_findings(folder: Path) -> Iterator[Finding]:
    from openvla_ros.action_specs import load_action_spec, read_action_specs
    from openvla_ros.model.action_stats import read_norm_stats

    stored = read_action_specs(folder)
    for key, stats in read_norm_stats(folder).items():
        unknown = load_action_spec(key, stored=stored).unknown_for_motion()
        reason = f"unknown for motion: {', '.join(unknown)}" if unknown else "enough known to move"
        level = "warn" if unknown else "ok"
        yield Finding("statistics", key, f"from {stats.source}", reason, level)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
