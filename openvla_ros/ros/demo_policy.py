"""Which policy a demo runs, with which node parameters, and what the screen must say about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openvla_ros.config.files import read_parameter_file
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import read_norm_stats, tuned_unnorm_key
from openvla_ros.model.embedded import EMBEDDED
from openvla_ros.ros.demo_options import CELL, PICTURES, SCENES, DemoOptions
from openvla_ros.ros.demo_pace import RATE_HZ
from openvla_ros.ros.frame_sources import STILL_S

if TYPE_CHECKING:
    from openvla_ros.model.base_reference import CheckpointFolders

NODE_NAME = "openvla_node"
MAX_POLICY_RATE_HZ = 30.0  # the upper limit of the node parameter
SAMPLE_KEY = "bridge_orig"  # the sample pictures are those of this dataset
MOCK_CAUTION = "No network runs: every answer is the same preset action."
EMBEDDED_CAUTION = (
    f"{EMBEDDED} has only ever seen the simulated cell: its motion on other pictures is "
    "meaningless. Only the pipeline is real."
)
UNKNOWN_CELL_CAUTION = (
    "This checkpoint has learnt from BridgeData's pictures, and never seen the simulated cell."
)

# Seconds. A laptop under load answers late; a robot that is none cannot be hurt by an old answer.
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


def choose_scene(options: DemoOptions) -> str:
    """Return "cell" or "pictures".

    Raises:
        ConfigurationError: Unknown scene, or a bag for the cell.
        CheckpointError: No such checkpoint.
    """
    if options.scene not in SCENES:
        raise ConfigurationError(
            f"scene {options.scene!r} is unknown; use one of: {', '.join(SCENES)}."
        )
    if options.bag is not None and options.scene == CELL:
        raise ConfigurationError("the cell draws its own pictures: leave out --bag, or --scene.")
    if options.scene != "auto":
        return options.scene
    if options.bag is not None:
        return PICTURES
    if options.backend == "mock" or not options.checkpoint:
        return CELL
    return PICTURES if _is_of_sample_pictures(_folders(options)) else CELL


def choose_policy(options: DemoOptions, scene: str) -> DemoPolicy:
    """Return the policy of a demo in a scene: "cell" or "pictures".

    Raises:
        OpenVLAError: There is no such checkpoint, or a parameter file is unusable.
    """
    timing = dict(RELAXED)
    notes: list[str] = []
    is_slow = False
    # Pictures: twice the camera's rate; with equal ones an answer waits for the next slot.
    rate_hz = RATE_HZ if scene == CELL else min(MAX_POLICY_RATE_HZ, 2.0 * options.rate_hz)
    parameters: dict[str, Any] = {
        "backend": options.backend,
        "motion_enabled": True,
        "base_frame": "base_link",
        "speed_scale": 1.0,
        "policy_rate": rate_hz,
    }
    if options.backend == "mock":
        parameters["unnorm_key"] = options.unnorm_key or SAMPLE_KEY
        title, caution = "OpenVLA demo: mock policy", MOCK_CAUTION
    else:
        folders = _folders(options)
        is_slow = _is_large(folders) and _runs_on_cpu(options.device)
        timing = dict(VERY_SLOW) if is_slow else timing
        named = folders.base if options.adapter else folders.adapter or folders.base
        parameters |= _checkpoint_parameters(options, str(named))
        is_of_samples = _is_of_sample_pictures(folders)
        if is_of_samples and not options.unnorm_key and not options.bag:
            parameters["unnorm_key"] = SAMPLE_KEY
            notes.append(
                f"statistics key {SAMPLE_KEY}, because the sample frames, and the axes of the "
                "cell, are BridgeData's; --unnorm-key chooses another."
            )
        title = f"OpenVLA demo: {options.checkpoint or EMBEDDED}"
        caution = _caution(options, scene, is_of_samples)
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


def _caution(options: DemoOptions, scene: str, is_of_samples: bool) -> str:
    if scene == CELL:
        return UNKNOWN_CELL_CAUTION if is_of_samples else ""
    return "" if options.checkpoint not in ("", EMBEDDED) else EMBEDDED_CAUTION


def _folders(options: DemoOptions) -> CheckpointFolders:
    from openvla_ros.model.base_reference import resolve_folders

    return resolve_folders(options.checkpoint or EMBEDDED, options.adapter or None)


def _is_large(folders: CheckpointFolders) -> bool:
    from openvla_ros.model.checkpoint import stored_parameters

    return stored_parameters(folders.base) > LARGE_PARAMETERS


def _is_of_sample_pictures(folders: CheckpointFolders) -> bool:
    """True for a checkpoint that has learnt from BridgeData and was not trained on after that."""
    if tuned_unnorm_key(folders.adapter or folders.base):
        return False
    return SAMPLE_KEY in read_norm_stats(folders.base)


def _checkpoint_parameters(options: DemoOptions, checkpoint: str) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint,
        "adapter": options.adapter,
        "unnorm_key": options.unnorm_key,
        "quantization": options.quantization,
        "exactness": options.exactness,
        "device": options.device,
    }


def _runs_on_cpu(device: str) -> bool:
    from openvla_ros.model.runtime_choices import choose_device

    chosen, _ = choose_device(device)
    return chosen.type == "cpu"
