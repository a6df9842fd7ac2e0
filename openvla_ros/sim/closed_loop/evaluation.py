"""Many episodes of one driver, one after the other, and their report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from openvla_ros.config import NodeConfig
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay.plan import versions
from openvla_ros.sim.cell import CONTROL_PERIOD_S, SimCell
from openvla_ros.sim.closed_loop.drivers import Driver
from openvla_ros.sim.closed_loop.episode import STEP_LIMITS, EpisodeResult, assign, run_episode
from openvla_ros.sim.closed_loop.figures import summary
from openvla_ros.sim.closed_loop.node_motion import EVALUATION_PARAMETERS
from openvla_ros.sim.expert import STEP_S
from openvla_ros.sim.tasks import KINDS

FORMAT = 1


@dataclass(frozen=True)
class Trial:
    """Under which circumstances a policy is tried.

    Attributes:
        kind: One of `tasks.KINDS`.
        episodes: How many; their seeds follow one another.
        first_seed: Of the first.
        latency_ms: From picture to answer, in simulated time.
        is_swapped: Every scene gets the instruction of another block.
        parameters: Of the node, on top of `EVALUATION_PARAMETERS`.
        step_limit: Steps of 0.2 s; 0 = `STEP_LIMITS`.

    Raises:
        ConfigurationError: Something of it is not usable; the text says what is.
    """

    kind: str = "reach"
    episodes: int = 100
    first_seed: int = 0
    latency_ms: float = 0.0
    is_swapped: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    step_limit: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"task '{self.kind}' is not one of: {', '.join(KINDS)}.")
        for name in ("episodes", "first_seed"):
            least = int(name == "episodes")
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; at least {least}.")
        period_s = 1.0 / self.config.motion.stream_rate
        if abs(period_s / CONTROL_PERIOD_S - round(period_s / CONTROL_PERIOD_S)) > 1e-6:
            raise ConfigurationError(
                f"stream_rate is {self.config.motion.stream_rate} Hz, and the simulated arm is "
                "commanded every 10 ms: use 20, 25, 50 or 100."
            )

    @property
    def config(self) -> NodeConfig:
        """The parameters of the node.

        Raises:
            ConfigurationError: An unknown name or a bad value.
        """
        return NodeConfig.from_values({**EVALUATION_PARAMETERS, **self.parameters})

    @property
    def seeds(self) -> range:
        """Seeds of the episodes."""
        return range(self.first_seed, self.first_seed + self.episodes)

    def with_mode(self, mode: str) -> Trial:
        """Return the trial with another `twist_mode`."""
        return replace(self, parameters={**self.parameters, "twist_mode": mode})


def run_trial(
    cell: SimCell,
    driver: Driver,
    trial: Trial,
    *,
    on_episode: Callable[[EpisodeResult, SimCell], None] = lambda result, cell: None,
    keeps_moments: bool = False,
) -> list[EpisodeResult]:
    """Return what comes of every episode; the same arguments give the same results.

    Args:
        cell: Simulated.
        driver: Answers.
        trial: The circumstances.
        on_episode: Told of every result, with the cell as the episode left it.
        keeps_moments: Keep pictures of failed episodes until `on_episode` has returned.

    Raises:
        ConfigurationError: A seed that belongs to training, or actions that cannot become motion.
    """
    results = []
    config = trial.config
    for seed in trial.seeds:
        assignment = assign(cell, trial.kind, seed, is_swapped=trial.is_swapped)
        result = run_episode(
            cell,
            driver,
            assignment,
            config,
            latency_s=trial.latency_ms / 1e3,
            step_limit=trial.step_limit,
            keeps_moments=keeps_moments,
        )
        on_episode(result, cell)
        result.moments.clear()
        results.append(result)
    return results


def report(
    results: list[EpisodeResult], trial: Trial, policy: dict[str, Any], *, through: str, arm: str
) -> dict[str, Any]:
    """Return the report of a trial as JSON types.

    Args:
        results: Of the episodes.
        trial: The circumstances.
        policy: Which policy it was.
        through: "process" or "ros".
        arm: Name of the simulated arm.
    """
    return {
        "format": FORMAT,
        "task": trial.kind,
        "policy": policy,
        **summary(results),
        "through": through,
        "arm": arm,
        "seeds": [trial.seeds[0], trial.seeds[-1]],
        "latency_ms": trial.latency_ms,
        "twist_mode": trial.config.motion.twist_mode,
        "swapped_instructions": trial.is_swapped,
        "step_s": STEP_S,
        "step_limit": trial.step_limit or STEP_LIMITS[trial.kind],
        "node_parameters": {**EVALUATION_PARAMETERS, **trial.parameters},
        "versions": versions(),
        "results": [result.to_dict() for result in results],
    }
