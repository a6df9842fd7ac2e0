"""Every number of a metrics.json: its name for people, its unit, its meaning, why it may be absent.

Tables and the glossary are made from this list, so that no number is shown without an explanation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from openvla_ros.evaluation.report.quantities import Units, quantity


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        path: Keys that lead to it in `variants[NAME]["metrics"]`.
        label: Its name in a table.
        unit: "%", "ms", "s", "bins" or ""; "translation" and "rotation" are those of the file.
        better: "lower" or "higher"; "" where neither is.
        meaning: One sentence or two.
        missing: Why there may be none.
    """

    path: tuple[str, ...]
    label: str
    unit: str
    better: str
    meaning: str
    missing: str

    def of(self, metrics: Mapping[str, Any] | None) -> float | None:
        """Return the number, or None where there is none."""
        value: Any = metrics
        for key in self.path:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value

    def shown(self, value: float | None, units: Units, *, signed: bool = False) -> str:
        """Return the number with its unit."""
        return quantity(value, self.unit_in(units), signed=signed)

    def unit_in(self, units: Units) -> str:
        """The unit in which a file gives this number."""
        return {"translation": units.translation, "rotation": units.rotation}.get(
            self.unit, self.unit
        )


_NO_RECORDING = "no step has a recorded action to compare with"
_NO_GRIPPER = "no gripper was recorded, never closed, or its open and closed values are not known"
_NO_TOKENS = "no step has a recorded action, which the tokens are compared with"

TRANSLATION = Metric(
    ("translation_error", "mean"),
    "Translation error, mean",
    "translation",
    "lower",
    "Distance between the predicted and the recorded translation of one step (Euclidean norm of "
    "the difference of x, y and z), averaged over steps.",
    _NO_RECORDING,
)
ROTATION = Metric(
    ("rotation_error", "mean"),
    "Rotation error, mean",
    "rotation",
    "lower",
    "Angle of the turn that leads from the recorded to the predicted rotation of one step, "
    "averaged over steps. In dataset units, where no angle is known, it is the Euclidean norm.",
    _NO_RECORDING,
)
COSINE = Metric(
    ("direction_cosine", "mean"),
    "Direction cosine, mean",
    "",
    "higher",
    "Cosine of the angle between the predicted and the recorded translation: 1 is the same "
    "direction, 0 is a right angle, or an answer that stays where it is, −1 is the opposite "
    "direction. Steps whose recording is a pause (slower than 1 cm/s) are left out.",
    "every recorded step is a pause, or nothing was recorded",
)
L1 = Metric(
    ("normalized_l1",),
    "Normalised L1 error",
    "",
    "lower",
    "Mean absolute difference of the actions, all numbers together, after each was scaled to "
    "[−1, 1] by the statistics of the dataset: what the loss of continuous policies measures.",
    _NO_RECORDING,
)
GRIPPER_F1 = Metric(
    ("gripper", "f1"),
    "Gripper F1",
    "%",
    "higher",
    "How well “closed” is predicted: harmonic mean of precision (share of the closed answers that "
    "are right) and recall (share of the recorded closed steps that are found). A policy that "
    "never closes has 0.",
    _NO_GRIPPER,
)
METRICS = (
    TRANSLATION,
    Metric(
        ("translation_error", "median"),
        "Translation error, median",
        "translation",
        "lower",
        "Half of the steps are closer than this.",
        _NO_RECORDING,
    ),
    Metric(
        ("translation_error", "p90"),
        "Translation error, 90th percentile",
        "translation",
        "lower",
        "One step in ten is further off than this.",
        _NO_RECORDING,
    ),
    ROTATION,
    Metric(
        ("rotation_error", "median"),
        "Rotation error, median",
        "rotation",
        "lower",
        "Half of the steps are closer than this.",
        _NO_RECORDING,
    ),
    Metric(
        ("rotation_error", "p90"),
        "Rotation error, 90th percentile",
        "rotation",
        "lower",
        "One step in ten is further off than this.",
        _NO_RECORDING,
    ),
    COSINE,
    L1,
    Metric(
        ("gripper", "accuracy"),
        "Gripper accuracy",
        "%",
        "higher",
        "Share of steps in which predicted and recorded gripper are both open or both closed.",
        _NO_GRIPPER,
    ),
    GRIPPER_F1,
    Metric(
        ("gripper", "mean_delay_s"),
        "Gripper delay, mean",
        "s",
        "",
        "How long after a recorded opening or closing the policy asks for the same; negative is "
        "early. An event without the same within 1 s counts as missed and is not in this mean.",
        "there is no recorded opening or closing, or the policy misses all",
    ),
    Metric(
        ("clip_rate",),
        "Clipped steps",
        "%",
        "lower",
        "Share of predicted steps that the per-step safety limit would cut.",
        "the units of the dataset are not known, and with them no limit",
    ),
    Metric(
        ("invalid_rate",),
        "Invalid answers",
        "%",
        "lower",
        "Share of steps in which the model generated an id that is no action token. A robot must "
        "not run them.",
        "no step was answered",
    ),
    Metric(
        ("tokens", "equal"),
        "Tokens equal",
        "%",
        "higher",
        "Share of generated action tokens that equal the tokens of the recorded action. The model "
        "runs freely: each token follows from its own earlier ones, as on the robot.",
        _NO_TOKENS,
    ),
    Metric(
        ("tokens", "actions_equal"),
        "Actions with all tokens equal",
        "%",
        "higher",
        "Share of steps in which every token equals the recorded one.",
        _NO_TOKENS,
    ),
    Metric(
        ("tokens", "mean_bins"),
        "Token distance, mean",
        "bins",
        "lower",
        "How many of the 255 bins of an action number lie between generated and recorded token.",
        _NO_TOKENS,
    ),
    Metric(
        ("tokens", "p99_bins"),
        "Token distance, 99th percentile",
        "bins",
        "lower",
        "One token in a hundred is further off than this.",
        _NO_TOKENS,
    ),
)

#: What a policy must do better than a baseline that does not look at the image.
AGAINST_BASELINES = (TRANSLATION, ROTATION, COSINE, L1, GRIPPER_F1)

#: Key in the file: name, and what it does.
BASELINES = {
    "zero": (
        "Zero",
        "does not move; the gripper stays in the state that is recorded most often",
    ),
    "mean_action": ("Mean action", "answers the mean of these recordings at every step"),
    "previous_action": ("Previous action", "repeats the recorded action of the step before"),
}


def missing_notes(values: Iterable[tuple[Metric, float | None]]) -> list[str]:
    """Return, for every metric without a number, why."""
    reasons: dict[str, list[str]] = {}
    for metric, value in values:
        labels = reasons.setdefault(metric.missing, [])
        if value is None and metric.label not in labels:
            labels.append(metric.label)
    return [f"{', '.join(labels)}: {why}." for why, labels in reasons.items() if labels]
