"""Who evaluates: one process here, or many on a Ray cluster. Both give the same records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from openvla_ros.data.episode import Episode
from openvla_ros.errors import OpenVLAError
from openvla_ros.evaluation.diagnosis.probes import ProbeResult
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.policy_description import PolicyDescription
from openvla_ros.evaluation.replay.policy_host import PolicyHost
from openvla_ros.evaluation.replay.variants import Progress, Variant


@dataclass(frozen=True)
class Job:
    """An episode to evaluate, and the name of its record."""

    name: str
    episode: Episode


class EvaluationEngine(Protocol):
    """What loads the policies of variants and asks them. Variants come one after the other."""

    def describe(self, variant: Variant) -> PolicyDescription:
        """Return the description of a variant's policy.

        Raises:
            OpenVLAError: It cannot be loaded.
        """
        ...

    def answer(
        self, variant: Variant, jobs: Sequence[Job], on_steps: Callable[[int], None]
    ) -> Iterator[tuple[Job, EpisodeRecord | OpenVLAError]]:
        """Yield the record of every job, or what is wrong with its episode, as they are done.

        Args:
            variant: Whose policy is asked.
            jobs: In the order in which they begin.
            on_steps: Told how many more steps are done.

        Raises:
            OpenVLAError: The policy cannot be loaded, or a worker was lost too often.
        """
        ...

    def probe(self, variant: Variant, episodes: Sequence[Episode]) -> ProbeResult:
        """Return the answers of a variant's policy to pictures made wrong on purpose.

        Raises:
            OpenVLAError: The policy cannot be loaded, or an episode cannot be read.
        """
        ...

    def close(self) -> None:
        """Let policies and processes go."""
        ...


class LocalEngine:
    """One episode after the other in this process.

    Args:
        on_loading: Told how far reading the weights is.
    """

    def __init__(self, on_loading: Progress | None = None) -> None:
        self._host = PolicyHost(on_loading)

    def describe(self, variant: Variant) -> PolicyDescription:
        """Return the description of a variant's policy."""
        return self._host.describe(variant)

    def answer(
        self, variant: Variant, jobs: Sequence[Job], on_steps: Callable[[int], None]
    ) -> Iterator[tuple[Job, EpisodeRecord | OpenVLAError]]:
        """Yield the records in the order of the jobs."""
        for job in jobs:
            yield job, self._host.answer(variant, job.episode, lambda: on_steps(1))

    def probe(self, variant: Variant, episodes: Sequence[Episode]) -> ProbeResult:
        """Return the answers of a variant's policy to pictures made wrong on purpose."""
        return self._host.probe(variant, episodes)

    def close(self) -> None:
        """Let the policy go."""
        self._host.release()
