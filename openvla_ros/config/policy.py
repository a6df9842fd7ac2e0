"""Parameters of what predicts: the model, its inputs, its timing, the meaning of its numbers.

This file knows no ROS and loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from openvla_ros.config.parameter import fixed_field, parameter_field

ENGINE_QUANTIZATIONS = ("fp8", "int8", "int4")
BITSANDBYTES_QUANTIZATIONS = ("nf4", "bnb_int8")
QUANTIZATIONS = ("none", *ENGINE_QUANTIZATIONS, *BITSANDBYTES_QUANTIZATIONS)
EXACTNESS_LEVELS = ("self", "hf", "approx")
MOCK_FAULTS = ("none", "nan", "short", "exception", "oom", "hang", "invalid")


@dataclass(frozen=True)
class ModelConfig:
    """Which policy is loaded, and how."""

    backend: str = fixed_field(
        "backend",
        "openvla",
        "what predicts: the network, or a mock that needs no torch",
        choices=("openvla", "mock"),
    )
    checkpoint: str = fixed_field(
        "checkpoint",
        "openvla/openvla-7b",
        "folder, or Hugging Face id, of the checkpoint; the result of fine-tuning too",
    )
    revision: str = fixed_field(
        "revision", "", "commit of the Hugging Face id; empty = newest, which is not reproducible"
    )
    adapter: str = fixed_field("adapter", "", "LoRA adapter folder or id; empty = none")
    unnorm_key: str = fixed_field(
        "unnorm_key",
        "",
        "action statistics to use; empty only if the checkpoint has one, or was fine-tuned for one",
    )
    quantization: str = fixed_field(
        "quantization",
        "none",
        "weight format of the language model: fp8, int8 and int4 run on the engine, nf4 and "
        "bnb_int8 need bitsandbytes",
        choices=QUANTIZATIONS,
    )
    use_engine: bool = fixed_field(
        "use_engine",
        True,
        "true: the fast runtime where it supports the model; false: the Hugging Face modules",
    )
    exactness: str = fixed_field(
        "exactness",
        "self",
        "self: the ids of the same weights decoded plainly; hf: those of the Hugging Face modules; "
        "approx: up to draft_tolerance bins off, for fewer passes",
        choices=EXACTNESS_LEVELS,
    )
    drafts: bool = fixed_field(
        "drafts",
        True,
        "check the action before as a draft of the next: fewer passes while the answer stays the "
        "same; false: every action takes the same time",
    )
    draft_tolerance: int = fixed_field(
        "draft_tolerance",
        1,
        "exactness approx: by how much an accepted id may differ from the network's own choice",
        unit="bins",
        minimum=1,
        maximum=8,
    )
    device: str = fixed_field("device", "auto", "auto, cpu, cuda, cuda:1, ...")
    dtype: str = fixed_field("dtype", "auto", "auto, float32, bfloat16 or float16")
    min_free_gpu_memory_gib: float = fixed_field(
        "min_free_gpu_memory_gib",
        0.0,
        "configure fails when less GPU memory is free; 0 = the weights in their dtype and "
        "quantization, and 1 GiB",
        unit="GiB",
        minimum=0.0,
        maximum=1024.0,
    )
    attn_implementation: str = fixed_field(
        "attn_implementation", "sdpa", "attention of the language model", choices=("sdpa", "eager")
    )
    center_crop: bool = fixed_field(
        "center_crop",
        False,
        "add the central crop of 90 % of the area: fine-tuned with augmentation (LIBERO)",
    )
    lanczos3: bool = fixed_field(
        "lanczos3", False, "add the Lanczos resize to 224 px of checkpoints trained from RLDS data"
    )
    jpeg_round_trip: bool = fixed_field(
        "jpeg_round_trip", False, "add the JPEG round trip of training data that was stored so"
    )
    rotate_image_180: bool = fixed_field(
        "rotate_image_180", False, "turn the image upside down first: LIBERO renders only"
    )
    local_files_only: bool = fixed_field(
        "local_files_only", True, "never download: the checkpoint must be on this machine"
    )
    warmup_iterations: int = fixed_field(
        "warmup_iterations",
        2,
        "predictions at configure, to measure the latency of this machine",
        minimum=0,
        maximum=10,
    )
    mock_action: tuple[float, ...] = fixed_field(
        "mock_action",
        (0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        "backend mock: the action of every step (x y z roll pitch yaw gripper)",
        unit="m, rad",
    )
    mock_latency_s: float = fixed_field(
        "mock_latency_s",
        0.0,
        "backend mock: time one prediction takes",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    mock_fault: str = parameter_field(
        "mock_fault", "none", "backend mock: what goes wrong with every frame", choices=MOCK_FAULTS
    )


@dataclass(frozen=True)
class InputConfig:
    """What comes in, and how old it may be."""

    instruction: str = parameter_field(
        "instruction", "", "instruction at start; empty = wait for one"
    )
    image_transport: str = fixed_field(
        "image_transport",
        "raw",
        "raw listens to `image`, compressed to `image/compressed`",
        choices=("raw", "compressed"),
    )
    image_roi: tuple[int, ...] = fixed_field(
        "image_roi",
        (0, 0, 0, 0),
        "x, y, width, height of the part the model sees; width 0 = whole image",
        unit="px",
        minimum=0,
        maximum=100000,
    )
    image_max_age: float = parameter_field(
        "image_max_age",
        0.3,
        "oldest image that is given to the model, by its stamp",
        unit="s",
        minimum=0.02,
        maximum=5.0,
    )
    image_timeout: float = parameter_field(
        "image_timeout",
        1.0,
        "the arm stops when no image arrives for so long",
        unit="s",
        minimum=0.02,
        maximum=5.0,
    )


@dataclass(frozen=True)
class TimingConfig:
    """How fast the policy runs, and when its answer is too late."""

    policy_rate: float = parameter_field(
        "policy_rate",
        5.0,
        "upper bound of the inference rate",
        unit="Hz",
        minimum=0.1,
        maximum=30.0,
    )
    inference_timeout: float = parameter_field(
        "inference_timeout",
        1.0,
        "the arm stops when an answer takes longer",
        unit="s",
        minimum=0.05,
        maximum=60.0,
    )
    max_action_age: float = parameter_field(
        "max_action_age",
        0.6,
        "an answer to an image older than this is not executed",
        unit="s",
        minimum=0.02,
        maximum=60.0,
    )
    hang_timeout: float = parameter_field(
        "hang_timeout",
        10.0,
        "a policy silent for so long is taken for dead: FAULT, and the process ends",
        unit="s",
        minimum=1.0,
        maximum=600.0,
    )


@dataclass(frozen=True)
class ActionConfig:
    """What the numbers of an action mean, where it is unpublished or the user knows better."""

    action_hz: float = parameter_field(
        "action_hz",
        0.0,
        "steps per second of the dataset; 0 = as published for the statistics key",
        unit="Hz",
        minimum=0.0,
        maximum=50.0,
    )
    kind: str = parameter_field(
        "action_spec.kind",
        "",
        "what a step is; empty = as published for the statistics key",
        choices=("", "eef_delta", "eef_velocity"),
    )
    translation_frame: str = parameter_field(
        "action_spec.translation_frame",
        "",
        "axes of the translation; empty = as published",
        choices=("", "base", "ee"),
    )
    rotation_frame: str = parameter_field(
        "action_spec.rotation_frame",
        "",
        "axes of the rotation; empty = as published",
        choices=("", "base", "ee"),
    )
    rotation_form: str = parameter_field(
        "action_spec.rotation_form",
        "",
        "what the three rotation numbers are; empty = as published",
        choices=("", "euler_xyz", "rotvec"),
    )
    translation_unit_m: float = parameter_field(
        "action_spec.translation_unit_m",
        0.0,
        "metres per unit and step; 0 = as published",
        unit="m",
        minimum=0.0,
        maximum=10.0,
    )
    rotation_unit_rad: float = parameter_field(
        "action_spec.rotation_unit_rad",
        0.0,
        "radians per unit and step; 0 = as published",
        unit="rad",
        minimum=0.0,
        maximum=10.0,
    )
    gripper_open: float = parameter_field(
        "action_spec.gripper_open",
        0.0,
        "gripper number that means open; equal to gripper_closed = as published; gripper.invert "
        "comes on top",
        minimum=-1000.0,
        maximum=1000.0,
    )
    gripper_closed: float = parameter_field(
        "action_spec.gripper_closed",
        0.0,
        "gripper number that means closed; equal to gripper_open = as published",
        minimum=-1000.0,
        maximum=1000.0,
    )

    def overrides(self) -> dict[str, Any]:
        """Fields of `ActionSpec` that the user has given, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.gripper_open == self.gripper_closed:
            del given["gripper_open"], given["gripper_closed"]
        return {
            name: value
            for name, value in given.items()
            if value or name in ("gripper_open", "gripper_closed")
        }
