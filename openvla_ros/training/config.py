"""What a fine-tuning run shall do: one frozen dataclass per concern, one YAML file for all.

This file knows names, defaults and what is allowed; reading YAML is `config_file.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openvla_ros.action_specs import require_spec_fields
from openvla_ros.errors import ConfigurationError

STRATEGIES = ("full", "last_layer", "frozen_vision", "sandwich", "lora", "qlora")
ADAPTER_STRATEGIES = ("lora", "qlora")
SCHEDULES = ("constant", "cosine", "linear")
CHECKPOINTING = ("none", "selective", "full")
PRECISIONS = ("bfloat16", "float32")
ACTIONS = ("recorded", "from_states")


@dataclass(frozen=True)
class SourceConfig:
    """One recording, or a folder of them, and how its steps become training steps.

    Attributes:
        path: rosbag2, LeRobot, RLDS or npz, or a folder of several; see docs/data_formats.md.
        name: Statistics key under which its actions are un-normalised when deployed.
        weight: Relative weight in the mixture, before it is multiplied by the number of steps.
        topics: For bags: YAML file that says which topic is what; "" = the defaults.
        camera: For everything but bags; "" = the only one, or "primary".
        rate_hz: Steps per second where the source does not say it.
        pose_key: For LeRobot and RLDS: the feature that is the pose of the end effector.
        transform: For RLDS: how an Open X-Embodiment dataset becomes OpenVLA's seven numbers, by
            its name, such as "bridge_orig"; "" = the action as it is stored.
        jpeg_as_tensorflow: For RLDS: decode JPEG as OpenVLA's training did; false = as the node
            does, which differs by a few grey levels.
        actions: "recorded", or "from_states": how far the pose moves until the next step.
        binarize_gripper: Make the last number 0 or 1, as OpenVLA does with BridgeData.
        drop_first_steps: Steps to leave out at the beginning of each episode.
        drop_idle: Leave out steps that neither move nor change the gripper.
        idle_motion: Norm of the first six numbers below which a step does not move.
        resample_hz: Keep steps at this lower rate and add their motions up; None = as recorded.
        skip_unlabelled: Leave out steps whose instruction is empty, instead of refusing them.
        action_spec: What the numbers of an action mean where the recording does not say it, such as
            {kind: eef_delta, gripper_open: 1.0}; see docs/finetune.md.
    """

    path: str
    name: str
    weight: float = 1.0
    topics: str = ""
    camera: str = ""
    rate_hz: float | None = None
    pose_key: str = ""
    transform: str = ""
    jpeg_as_tensorflow: bool = True
    actions: str = "recorded"
    binarize_gripper: bool = False
    drop_first_steps: int = 0
    drop_idle: bool = False
    idle_motion: float = 1e-4
    resample_hz: float | None = None
    skip_unlabelled: bool = False
    action_spec: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in (("path", self.path), ("name", self.name)):
            if not text:
                raise ConfigurationError(f"data.sources: {name} is missing or empty.")
        where = f"data.sources, {self.name}: "
        require_choice(where + "actions", self.actions, ACTIONS)
        require_range(where + "weight", self.weight, 0.0, above=True)
        require_range(where + "drop_first_steps", self.drop_first_steps, 0)
        require_range(where + "idle_motion", self.idle_motion, 0.0)
        for name, rate in (("rate_hz", self.rate_hz), ("resample_hz", self.resample_hz)):
            if rate is not None:
                require_range(where + name, rate, 0.0, above=True)
        require_spec_fields(self.action_spec, where + "action_spec")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        sources: At least one, or a mixture.
        mixture: Name of an Open X-Embodiment mixture, such as "bridge"; "" = `sources`.
        mixture_folder: Folder that holds one RLDS dataset per name of the mixture.
        held_out: Share of the episodes of each source that is never trained on.
        image_augmentation: Random crop, brightness, contrast, saturation and hue, as OpenVLA
            fine-tunes; the deployed policy then crops the centre.
        lanczos3: Resize to 224 x 224 as RLDS training data is; augmentation needs it.
        rotate_180: Turn the images upside down (LIBERO renders only).
        predict_stop_token: Whether EOS after the action is trained too, as OpenVLA does.
        workers: Processes that prepare images; 0 = the training process itself.
        cache_folder: Where prepared images and statistics are kept; "" = the user's cache.
    """

    sources: tuple[SourceConfig, ...] = ()
    mixture: str = ""
    mixture_folder: str = ""
    held_out: float = 0.05
    image_augmentation: bool = True
    lanczos3: bool = True
    rotate_180: bool = False
    predict_stop_token: bool = True
    workers: int = 4
    cache_folder: str = ""

    def __post_init__(self) -> None:
        if bool(self.sources) == bool(self.mixture):
            raise ConfigurationError(
                "data: give sources or a mixture, one of them: what shall be trained on?"
            )
        if self.mixture and not self.mixture_folder:
            raise ConfigurationError("data.mixture needs data.mixture_folder: where is the data?")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"data.sources: names must differ, not {', '.join(names)}.")
        require_range("data.held_out", self.held_out, 0.0, 0.9)
        require_range("data.workers", self.workers, 0, 256)
        if self.image_augmentation and not self.lanczos3:
            raise ConfigurationError(
                "data.image_augmentation works on images resized by lanczos3, as OpenVLA's does: "
                "set data.lanczos3 to true, or data.image_augmentation to false."
            )


@dataclass(frozen=True)
class StrategyConfig:
    """Which weights are trained.

    Attributes:
        name: "full", "last_layer", "frozen_vision", "sandwich", "lora" or "qlora".
        lora_rank: Rank r of the adapters.
        lora_alpha: Their scale is alpha / r; None = min(r, 16).
        lora_dropout: Probability, while training.
        lora_targets: Last parts of the names of the adapted modules; () = every linear map and
            patch convolution, lm_head included, as OpenVLA's script.
    """

    name: str = "lora"
    lora_rank: int = 32
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice("strategy.name", self.name, STRATEGIES)
        require_range("strategy.lora_rank", self.lora_rank, 1, 4096)
        require_range("strategy.lora_dropout", self.lora_dropout, 0.0, 0.99)
        if self.lora_alpha is not None:
            require_range("strategy.lora_alpha", self.lora_alpha, 0.0, above=True)

    @property
    def alpha(self) -> float:
        """The alpha that holds."""
        return float(min(self.lora_rank, 16)) if self.lora_alpha is None else self.lora_alpha

    @property
    def is_adapter(self) -> bool:
        """Whether adapters are trained beside frozen weights."""
        return self.name in ADAPTER_STRATEGIES


@dataclass(frozen=True)
class OptimizationConfig:
    """How the weights are moved.

    Attributes:
        learning_rate: None = 5e-4 for adapters, 2e-5 for everything else.
        weight_decay: None = 0.01 for adapters, 0 for everything else; never on biases and norms
            of a model that is trained itself.
        beta1: Of AdamW.
        beta2: Of AdamW.
        schedule: "constant", or down to 0 at max_steps: "cosine", "linear".
        warmup_steps: Steps over which the rate rises from 0.
        gradient_clip: Largest norm; None = none for adapters, 1.0 for everything else; 0 = none.
        batch_size: Samples per process and forward pass.
        accumulation: Passes per step: the batch of one step is batch_size times this, per process.
        max_steps: Steps of the whole run.
        ema_decay: Of a moving average of the weights, which is then deployed; 0 = none.
        label_spread: Standard deviation, in bins, of the label of an action: neighbours of the
            recorded bin count as partly right; 0 = the recorded bin alone, as OpenVLA.
        auxiliary_losses: Name of a registered loss to its weight.
    """

    learning_rate: float | None = None
    weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: str = "constant"
    warmup_steps: int = 0
    gradient_clip: float | None = None
    batch_size: int = 16
    accumulation: int = 1
    max_steps: int = 10_000
    ema_decay: float = 0.0
    label_spread: float = 0.0
    auxiliary_losses: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_choice("optimization.schedule", self.schedule, SCHEDULES)
        if self.learning_rate is not None:
            require_range("optimization.learning_rate", self.learning_rate, 0.0, above=True)
        if self.weight_decay is not None:
            require_range("optimization.weight_decay", self.weight_decay, 0.0)
        if self.gradient_clip is not None:
            require_range("optimization.gradient_clip", self.gradient_clip, 0.0)
        for name in ("beta1", "beta2", "ema_decay"):
            require_range(f"optimization.{name}", getattr(self, name), 0.0, 0.999999)
        for name in ("batch_size", "accumulation", "max_steps"):
            require_range(f"optimization.{name}", getattr(self, name), 1)
        require_range("optimization.warmup_steps", self.warmup_steps, 0)
        require_range("optimization.label_spread", self.label_spread, 0.0)
        for name, weight in self.auxiliary_losses.items():
            require_range(f"optimization.auxiliary_losses.{name}", weight, 0.0, above=True)


@dataclass(frozen=True)
class RunConfig:
    """Where and how the run happens.

    Attributes:
        out: Folder of the run; it is resumed when it holds one already.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: Numbers of the forward and backward pass: "bfloat16" (autocast; what is trained
            stays float32) or "float32".
        activation_checkpointing: What is computed again in the backward pass to save memory:
            "none", "selective" (the MLPs) or "full" (whole blocks).
        compile: Compile the blocks with torch.compile.
        seed: Of everything that is drawn.
        save_every: Steps between checkpoints of the run.
        keep: Checkpoints of the run that stay on disk.
        evaluate_every: Steps between free-running evaluations; 0 = only at the end.
        evaluation_samples: Steps in each evaluated slice: of the training and of the held-out
            episodes.
        log_every: Steps between lines of metrics.jsonl.
        target_accuracy: Stop when the free-running token accuracy on the training slice reaches
            it; 0 = never.
        tensorboard: Write TensorBoard events.
        wandb_project: Project name for Weights & Biases; "" = off.
    """

    out: str = "runs/finetune"
    device: str = "auto"
    precision: str = "bfloat16"
    activation_checkpointing: str = "none"
    compile: bool = False
    seed: int = 7
    save_every: int = 1000
    keep: int = 2
    evaluate_every: int = 1000
    evaluation_samples: int = 128
    log_every: int = 10
    target_accuracy: float = 0.0
    tensorboard: bool = True
    wandb_project: str = ""

    def __post_init__(self) -> None:
        require_choice("run.precision", self.precision, PRECISIONS)
        require_choice("run.activation_checkpointing", self.activation_checkpointing, CHECKPOINTING)
        for name in ("save_every", "keep", "evaluation_samples", "log_every"):
            require_range(f"run.{name}", getattr(self, name), 1)
        for name in ("seed", "evaluate_every"):
            require_range(f"run.{name}", getattr(self, name), 0)
        require_range("run.target_accuracy", self.target_accuracy, 0.0, 1.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """All of a run.

    Attributes:
        base: Checkpoint to start from: a folder or a hub id.
        revision: Hub commit of the base.
        data: What is trained on.
        strategy: Which weights are trained.
        optimization: How they are moved.
        run: Where and how it happens.
    """

    base: str
    data: DataConfig
    revision: str = ""
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.base:
            raise ConfigurationError("base is empty: name a checkpoint folder or hub id.")

    @property
    def learning_rate(self) -> float:
        """The rate that holds."""
        given = self.optimization.learning_rate
        return (5e-4 if self.strategy.is_adapter else 2e-5) if given is None else given

    @property
    def weight_decay(self) -> float:
        """The decay that holds."""
        given = self.optimization.weight_decay
        return (0.01 if self.strategy.is_adapter else 0.0) if given is None else given

    @property
    def gradient_clip(self) -> float:
        """The largest gradient norm that holds; 0 = none."""
        given = self.optimization.gradient_clip
        return (0.0 if self.strategy.is_adapter else 1.0) if given is None else given


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Return when the value is one of the choices.

    Raises:
        ConfigurationError: It is not.
    """
    if value not in choices:
        raise ConfigurationError(f"{name} is {value!r}; use one of {', '.join(choices)}.")


def require_range(
    name: str, value: float, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Return when low <= value <= high; low < value with `above`.

    Raises:
        ConfigurationError: It is not, or the value is not finite.
    """
    if math.isfinite(value) and (low < value if above else low <= value) and value <= high:
        return
    limits = f"{'greater than' if above else 'at least'} {low:g}"
    limits += "" if math.isinf(high) else f" and at most {high:g}"
    raise ConfigurationError(f"{name} is {value!r}; it must be {limits}.")
