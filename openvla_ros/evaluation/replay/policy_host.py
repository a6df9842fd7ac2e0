"""A process that evaluates: at most one loaded policy, used for one thing after the other.

The local engine is one such host in this process; the Ray engine has one in each of its workers.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError, ImageError, InstructionError, OpenVLAError
from openvla_ros.evaluation.diagnosis.probes import ProbeResult, run_probes
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.episode_answers import answer_episode
from openvla_ros.evaluation.replay.policy_description import PolicyDescription, describe
from openvla_ros.evaluation.replay.variants import Progress, Variant
from openvla_ros.types import Policy

#: What a recording can do wrong. Anything else is the policy's or the machine's, and ends the run.
BROKEN_EPISODE = (ConfigurationError, ImageError, InstructionError)


class PolicyHost:
    """Loads the policy of a variant when it is needed, and lets the one before go first.

    Args:
        on_loading: Told how far reading the weights is.
    """

    def __init__(self, on_loading: Progress | None = None) -> None:
        self._on_loading = on_loading
        self._variant: Variant | None = None
        self._policy: Policy | None = None
        self._description: PolicyDescription | None = None

    def describe(self, variant: Variant) -> PolicyDescription:
        """Return the description of a variant's policy, which is loaded and tested for it.

        Raises:
            OpenVLAError: It cannot be loaded.
        """
        return self._load(variant)[1]

    def answer(
        self, variant: Variant, episode: Episode, on_step: Callable[[], None] = lambda: None
    ) -> EpisodeRecord | OpenVLAError:
        """Return the record of an episode, or what is wrong with the episode.

        Raises:
            OpenVLAError: The policy cannot be loaded.
        """
        policy, description = self._load(variant)
        try:
            return answer_episode(policy, episode, description.stats, on_step)
        except BROKEN_EPISODE as error:
            return error

    def probe(self, variant: Variant, episodes: Sequence[Episode]) -> ProbeResult:
        """Return the answers of a variant's policy to pictures made wrong on purpose.

        Raises:
            OpenVLAError: The policy cannot be loaded, or an episode cannot be read.
        """
        return run_probes(self._load(variant)[0], episodes)

    def release(self) -> None:
        """Let the policy go, and its memory."""
        if self._policy is None:
            return
        self._variant = self._policy = self._description = None
        gc.collect()  # modules and hooks hold each other
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, variant: Variant) -> tuple[Policy, PolicyDescription]:
        if self._variant != variant or self._policy is None or self._description is None:
            self.release()  # first: two 7B policies may not fit
            self._policy = variant.load(self._on_loading)
            self._description = describe(self._policy)
            self._variant = variant
        return self._policy, self._description
