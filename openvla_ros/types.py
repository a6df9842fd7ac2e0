"""The nouns that every room of the house speaks: frozen, with shapes and units on the fields.

This file knows no network, no file and no ROS message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

PRIMARY = "primary"  # the third-person camera: the only one OpenVLA was trained with

#: Keys of `Prediction.timings`, in order. A stage that a policy does not have is absent, `total_ms`
#: never is. Where the engine runs on a GPU, all but the first and the last are the device's own
#: time. A plain action has `decode_ms`; one that began with a draft `pass_ms`, if it needed passes.
STAGES = (
    "preprocess_ms",  # image and instruction to tensors (`Policy.prepare`), whenever that was
    "copy_ms",  # tensors to the device
    "towers_ms",  # image to language embeddings
    "prefill_ms",  # image and prompt, up to the first id
    "decode_ms",  # the other ids, one after another
    "pass_ms",  # the other ids, by passes that check a draft
    "settle_ms",  # all of it once more, by the Hugging Face modules (exactness hf)
    "total_ms",  # `prepare` and `predict` together, without the time between them
)


@dataclass(frozen=True)
class Observation:
    """What the policy sees at one instant.

    Attributes:
        images: Camera name to (H, W, 3) uint8 RGB. OpenVLA reads `images["primary"]` alone.
        instruction: The task in plain language, exactly as the operator gave it.
        proprio: (m,) float64 robot state, or None. OpenVLA does not use it.
        stamp_ns: Time at which the image was taken (ROS time), nanoseconds; 0 = a trial, not a
            frame of a camera.
        prepared: What `Policy.prepare` made of the fields above, for the same policy's `predict`.
    """

    images: Mapping[str, np.ndarray]
    instruction: str
    proprio: np.ndarray | None = None
    stamp_ns: int = 0
    prepared: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Prediction:
    """What the policy answers: a chunk of K >= 1 steps at the rate of its dataset.

    Attributes:
        actions: (K, n) float64, in the units the dataset was recorded in. OpenVLA has K = 1.
        normalized_actions: (K, n) float64 in [-1, 1], before un-normalisation.
        token_ids: The K * n generated ids, in order.
        unnorm_key: The statistics that produced `actions` from `normalized_actions`.
        prompt: The exact text the model was given.
        token_probabilities: Probability of each generated id; empty when not computed.
        invalid_dims: Positions in `token_ids` that hold an id outside the action range. Their
            numbers are those of the reference implementation (an extreme bin) and mean nothing.
        timings: Milliseconds by stage, see `STAGES`; `total_ms` is always there.
        passes: Forward passes of the language model.
        drafts_accepted: Leading ids of the draft that the first pass confirmed.
    """

    actions: np.ndarray
    normalized_actions: np.ndarray
    token_ids: list[int]
    unnorm_key: str
    prompt: str = ""
    token_probabilities: tuple[float, ...] = ()
    invalid_dims: tuple[int, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    passes: int = 0
    drafts_accepted: int = 0

    @property
    def action(self) -> np.ndarray:
        """(n,) float64: the first step, in dataset units."""
        return self.actions[0]

    @property
    def normalized(self) -> np.ndarray:
        """(n,) float64: the first step, in [-1, 1]."""
        return self.normalized_actions[0]

    @property
    def is_valid(self) -> bool:
        """True when every generated id is an action token. A robot must not run anything else."""
        return not self.invalid_dims


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean. `None` is "nobody has published it", never a guess.

    Attributes:
        unnorm_key: The statistics key this describes.
        robot: The arm the data was recorded with.
        kind: "eef_delta" (displacement per step) or "eef_velocity" (dataset velocity units).
        translation_frame: "base" or "ee": the axes in which the first three numbers are given.
        rotation_frame: "base" (left-multiplied) or "ee" (right-multiplied).
        rotation_form: "euler_xyz" (R = Rz(yaw) Ry(pitch) Rx(roll)) or "rotvec".
        translation_unit_m: Metres per unit and step.
        rotation_unit_rad: Radians per unit and step.
        action_hz: Steps per second of the dataset. Without it there is no velocity.
        gripper_open: The gripper value that means fully open.
        gripper_closed: The gripper value that means fully closed.
        sources: Field name to where the fact was read.
    """

    unnorm_key: str
    robot: str | None = None
    kind: str | None = None
    translation_frame: str | None = None
    rotation_frame: str | None = None
    rotation_form: str | None = None
    translation_unit_m: float | None = None
    rotation_unit_rad: float | None = None
    action_hz: float | None = None
    gripper_open: float | None = None
    gripper_closed: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    #: Fields without which an action cannot become a twist.
    NEEDED_FOR_MOTION = (
        "kind",
        "translation_frame",
        "rotation_frame",
        "rotation_form",
        "translation_unit_m",
        "rotation_unit_rad",
        "action_hz",
        "gripper_open",
        "gripper_closed",
    )

    def unknown_for_motion(self) -> tuple[str, ...]:
        """Names of the fields that must be supplied before a robot may move."""
        return tuple(name for name in self.NEEDED_FOR_MOTION if getattr(self, name) is None)


@dataclass(frozen=True)
class PolicyInfo:
    """Which policy is loaded, and why it runs the way it does.

    Attributes:
        checkpoint: Folder or hub id.
        revision: Hub commit, or "".
        unnorm_key: Statistics in use.
        quantization: "none", "nf4", ...
        choices: Every expensive automatic choice (device, dtype, attention, ...) as
            "value: reason".
    """

    checkpoint: str
    revision: str = ""
    unnorm_key: str = ""
    quantization: str = "none"
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodingStatistics:
    """How actions were decoded since the policy was loaded; trial runs are not counted.

    Attributes:
        actions: Predicted actions.
        passes: Forward passes of the language model they took together.
        drafted: Actions that began with a draft, the action before.
        accepted: Drafted actions by the number of leading ids that the first pass confirmed:
            `accepted[0]` actions had none right. The last id needs no draft.
        guard_fired: Drafts confirmed whole, with a margin too small to rely on: computed again.
        settled_by_model: Actions that the Hugging Face modules decided (exactness hf).
    """

    actions: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: tuple[int, ...] = ()
    guard_fired: int = 0
    settled_by_model: int = 0

    @property
    def mean_passes(self) -> float:
        """Passes per action; NaN before the first."""
        return self.passes / self.actions if self.actions else math.nan

    @property
    def mean_accepted(self) -> float:
        """Confirmed ids per draft; NaN before the first."""
        confirmed = sum(ids * actions for ids, actions in enumerate(self.accepted))
        return confirmed / self.drafted if self.drafted else math.nan

    def described(self) -> dict[str, str]:
        """Return what happened in words, by name; empty before the first action."""
        if not self.actions:
            return {}
        words = {"actions": str(self.actions), "mean passes": f"{self.mean_passes:.2f}"}
        if self.drafted:
            counts = ", ".join(f"{n} had {ids}" for ids, n in enumerate(self.accepted) if n)
            words |= {
                "drafted actions": str(self.drafted),
                "draft ids confirmed": f"{self.mean_accepted:.2f} on average: {counts}",
                "guard fired": str(self.guard_fired),
            }
        if self.settled_by_model:
            words["settled by Hugging Face"] = str(self.settled_by_model)
        return words


@dataclass(frozen=True)
class Finding:
    """One line of what `doctor`, `replay` or `audit` found.

    Attributes:
        section: Heading it belongs under.
        item: What was looked at.
        value: What was found.
        reason: Why it is so, or what to do.
        level: "ok", "warn" (works, with a drawback) or "problem" (prevents running).
    """

    section: str
    item: str
    value: str
    reason: str = ""
    level: str = "ok"


class Policy(Protocol):
    """Anything that turns an observation into a prediction. One thread predicts at a time."""

    @property
    def info(self) -> PolicyInfo:
        """Which policy this is."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """What the numbers of `Prediction.actions` mean."""
        ...

    @property
    def statistics(self) -> DecodingStatistics:
        """How actions were decoded so far; empty for a policy that does not decode."""
        return DecodingStatistics()

    def prepare(self, observation: Observation) -> Observation:
        """Return the observation with what can be done before the policy is free.

        Any thread may ask, also while another one predicts: so the next image is ready when the
        policy is. Without it, `predict` does all: a policy need not have anything to prepare.

        Raises:
            ImageError: No primary image, or not (H, W, 3) uint8.
            InstructionError: Empty instruction.
        """
        return observation

    def predict(self, observation: Observation) -> Prediction:
        """Return the action for one observation, prepared or not.

        Raises:
            ImageError: No primary image, or not (H, W, 3) uint8.
            InstructionError: Empty instruction.
        """
        ...

    def begin_episode(self) -> None:
        """Forget what is kept from one observation to the next: another episode begins."""

    def view(self, image: np.ndarray) -> np.ndarray:
        """Return the (H, W, 3) uint8 RGB image as the network gets it: (h, w, 3) uint8 RGB.

        For people to look at; any thread may ask.

        Raises:
            ImageError: Not (H, W, 3) uint8.
        """
        ...

    def self_test(self) -> None:
        """Return when the policy demonstrably looks at its image.

        Raises:
            SelfTestError: It does not; the text says how it failed.
        """
        ...
