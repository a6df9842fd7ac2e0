"""Which policy a demo runs, with which node parameters, and what the screen must say about it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from openvla_ros.config.files import read_parameter_file
from openvla_ros.config.folders import cache_folder
from openvla_ros.model.action_stats import read_norm_stats, tuned_unnorm_key
from openvla_ros.ros.frame_sources import STILL_S

if TYPE_CHECKING:
    from openvla_ros.model.base_reference import CheckpointFolders
    from openvla_ros.ros.demo import DemoOptions

NODE_NAME = "openvla_node"
MAX_POLICY_RATE_HZ = 30.0  # the upper limit of the node parameter
SAMPLE_KEY = "bridge_orig"  # sample frames and tiny checkpoint are those of this dataset
TINY_PROFILE, TINY_SEED = "tiny", 0
RANDOM_CAUTION = "The weights are random: the motion is meaningless. Only the pipeline is real."
MOCK_CAUTION = "No network runs: every answer is the same preset action."

# Seconds. A laptop under load answers late; a mock robot cannot be hurt by an old answer.
RELAXED = {"image_max_age": 1.0, "max_action_age": 2.0, "inference_timeout": 3.0}
LARGE_PARAMETERS = 10**9
# The full model on a CPU takes tens of seconds per answer.
VERY_SLOW_STILL_S = 60.0
VERY_SLOW = {
    "image_max_age": 5.0,
    "max_action_age": 60.0,
    "inference_timeout": 60.0,
    "hang_timeout": 600.0,
}


@dataclass(frozen=True)
class DemoPolicy:
    """What runs.

    Attributes:
        title: Heading of the table.
        caution: What the user must not believe; "" for a real checkpoint.
        notes: Choices that differ from the node's defaults, in words.
        parameters: Node parameters.
        still_s: Seconds that one still picture is shown. A picture comes with its instruction, and
            an answer to an instruction that has changed is dropped.
    """

    title: str
    caution: str
    notes: tuple[str, ...]
    parameters: dict[str, Any]
    still_s: float = STILL_S


def choose_policy(options: DemoOptions, console: Console) -> DemoPolicy:
    """Return the policy of a demo; builds the tiny checkpoint on first use.

    Raises:
        OpenVLAError: The tiny checkpoint cannot be built, for example without torch.
    """
    timing = dict(RELAXED)
    notes: list[str] = []
    is_slow = False
    parameters: dict[str, Any] = {
        "backend": options.backend,
        "motion_enabled": True,
        "base_frame": "base_link",
        "speed_scale": 1.0,
        # Twice the camera's: with equal rates an answer waits for the next slot, up to a period.
        "policy_rate": min(MAX_POLICY_RATE_HZ, 2.0 * options.rate_hz),
    }
    if options.backend == "mock":
        parameters["unnorm_key"] = options.unnorm_key or SAMPLE_KEY
        title, caution = "OpenVLA demo: mock policy", MOCK_CAUTION
    elif options.checkpoint:
        from openvla_ros.model.base_reference import resolve_folders
        from openvla_ros.model.checkpoint import stored_parameters

        folders = resolve_folders(options.checkpoint, options.adapter or None)
        is_large = stored_parameters(folders.base) > LARGE_PARAMETERS
        is_slow = is_large and _runs_on_cpu(options.device)
        timing = dict(VERY_SLOW) if is_slow else timing
        named = folders.base if options.adapter else folders.adapter or folders.base
        parameters |= _checkpoint_parameters(options, str(named))
        if not options.unnorm_key and not options.bag and _may_use_bridge_key(folders):
            parameters["unnorm_key"] = SAMPLE_KEY
            notes.append(
                f"statistics key {SAMPLE_KEY}, because the sample frames are BridgeData's; "
                "--unnorm-key chooses another."
            )
        title, caution = f"OpenVLA demo: {options.checkpoint}", ""
    else:
        checkpoint = tiny_checkpoint(console)
        parameters |= _checkpoint_parameters(options, str(checkpoint))
        parameters["unnorm_key"] = options.unnorm_key or SAMPLE_KEY
        title, caution = "OpenVLA demo: tiny checkpoint with random weights", RANDOM_CAUTION
    if options.image_max_age_s is not None:
        timing["image_max_age"] = options.image_max_age_s
    if options.max_action_age_s is not None:
        timing["max_action_age"] = options.max_action_age_s
        timing["inference_timeout"] = max(timing["inference_timeout"], options.max_action_age_s)
    parameters |= timing
    listed = ", ".join(f"{name} {value:g} s" for name, value in timing.items())
    notes.append(f"time limits are wider than on a robot: {listed}.")
    if options.params_file is not None:
        given = read_parameter_file(options.params_file)
        parameters |= given
        notes.append(f"from {options.params_file}: {', '.join(given)}.")
    still_s = VERY_SLOW_STILL_S if is_slow else STILL_S
    return DemoPolicy(title, caution, tuple(notes), parameters, still_s)


def tiny_checkpoint(console: Console) -> Path:
    """Return the folder of the tiny random checkpoint, built once per recipe."""
    from openvla_ros.model.random_weights import build_checkpoint, recipe_id

    folder = cache_folder() / f"{TINY_PROFILE}-{recipe_id()}-seed{TINY_SEED}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with console.status("building the tiny checkpoint (once) ..."):
        # Built aside and renamed: an interrupted first run leaves no half checkpoint behind.
        aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            built = build_checkpoint(TINY_PROFILE, aside / "checkpoint", seed=TINY_SEED)
            if not folder.exists():
                built.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _checkpoint_parameters(options: DemoOptions, checkpoint: str) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint,
        "adapter": options.adapter,
        "unnorm_key": options.unnorm_key,
        "quantization": options.quantization,
        "exactness": options.exactness,
        "device": options.device,
    }


def _may_use_bridge_key(folders: CheckpointFolders) -> bool:
    if tuned_unnorm_key(folders.adapter or folders.base):
        return False
    keys = read_norm_stats(folders.base)
    return len(keys) > 1 and SAMPLE_KEY in keys


def _runs_on_cpu(device: str) -> bool:
    from openvla_ros.model.runtime_choices import choose_device

    chosen, _ = choose_device(device)
    return chosen.type == "cpu"
