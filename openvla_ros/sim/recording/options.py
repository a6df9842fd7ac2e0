"""What is to be recorded."""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.errors import ConfigurationError
from openvla_ros.sim.tasks import KINDS

FIRST_SEED = 1_000_000  # below are those of evaluations
DATASET = "sim_viperx"  # the statistics key of what is trained on these recordings


@dataclass(frozen=True)
class RecordingOptions:
    """How pictures, labels and episodes are made; the same options give the same bags.

    Attributes:
        tasks: Kinds of tasks, of `tasks.KINDS`, in turn.
        seed: Of the first picture or episode; each following one has the next number.
        arm: A name of `arms.ARMS`.
        width: Of the pictures, pixels.
        height: Of the pictures, pixels.
        jpeg_quality: 1 ... 100.
        steps_per_episode: Of scattered moments: how many make one episode.
        label_noise: Of trajectories: standard deviation of what is added to an action before it is
            executed and recorded, as a share of the longest step.
        pushes: Of trajectories: chance per step that the arm is pushed off its way.
        policy: Of trajectories: the checkpoint that drives while the expert is recorded; "" = the
            expert drives.
    """

    tasks: tuple[str, ...] = ("reach",)
    seed: int = FIRST_SEED
    arm: str = "viperx"
    width: int = 224
    height: int = 224
    jpeg_quality: int = 95
    steps_per_episode: int = 100
    label_noise: float = 0.02
    pushes: float = 0.08
    policy: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be recorded."""
        unknown = [kind for kind in self.tasks if kind not in KINDS]
        if unknown or not self.tasks:
            raise ConfigurationError(
                f"tasks: {', '.join(map(repr, unknown)) or 'none given'}; "
                f"there are: {', '.join(KINDS)}."
            )
        for name, low, high in (
            ("seed", 0, 2**62),
            ("jpeg_quality", 1, 100),
            ("steps_per_episode", 1, 100_000),
            ("label_noise", 0.0, 0.5),
            ("pushes", 0.0, 0.5),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(f"{name} is {value}; allowed: {low} to {high}.")

    def kind_of(self, number: int) -> str:
        """Return the task of a picture or episode, counted from 0."""
        return self.tasks[number % len(self.tasks)]
