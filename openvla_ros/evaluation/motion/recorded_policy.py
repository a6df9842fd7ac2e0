"""A policy that answers with what was recorded: the ground truth, on the way of every model.

Offline it must agree with the recording to the last number; behind the node it shows what the
robot would do under a perfect model. It does not look at images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError, InstructionError
from openvla_ros.model.action_stats import ActionStats, normalize, unnormalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec, Observation, Policy, PolicyInfo, Prediction

TRIAL_STAMP = 0  # an observation that no camera took
_LATE_PERIODS = 1.5  # a frame so much later than a step belongs to a gap of the recording


class RecordedPolicy(Policy):
    """Finds the step by the stamp of the image, and answers with its action.

    A step holds from its image until the next one. Where nothing was recorded the answer is NaN,
    and the node refuses it.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        spec: ActionSpec,
        stats: ActionStats,
        tokenizer: ActionTokenizer,
        *,
        through_tokens: bool = False,
    ) -> None:
        """Keep the recorded actions; images are never read.

        Args:
            episodes: At least one; of one bag, or of recordings that follow one another in time.
            spec: What the numbers mean.
            stats: Of the actions: for normalised numbers and ids.
            tokenizer: Of the checkpoint that these ids shall be compared with.
            through_tokens: Answer what is left of an action after its 256 bins and the cut at q01
                and q99: the best that a model with these statistics can do.

        Raises:
            ConfigurationError: Two episodes cover the same time, so a stamp does not name a step.
            ActionStatsError: Actions and statistics differ in length.
        """
        ordered = sorted(episodes, key=lambda episode: int(episode.stamps_ns[0]))
        for before, after in pairwise(ordered):
            if before.stamps_ns[-1] >= after.stamps_ns[0]:
                raise ConfigurationError(
                    f"the episodes {before.name} and {after.name} cover the same time, so the "
                    "stamp of an image does not say which step it belongs to. Give each of them a "
                    "policy of its own."
                )
        self._spec = spec
        self._stamps = np.concatenate([episode.stamps_ns for episode in ordered])
        self._valid_ns = np.concatenate(
            [np.full(len(e), round(_LATE_PERIODS * 1e9 / e.rate_hz)) for e in ordered]
        )
        recorded = np.concatenate([episode.actions for episode in ordered])
        self._normalized = normalize(recorded, stats)
        self._token_ids = tokenizer.encode(np.nan_to_num(self._normalized))
        if through_tokens:
            is_known = np.isfinite(recorded)
            self._normalized = np.where(is_known, tokenizer.decode(self._token_ids), np.nan)
            recorded = unnormalize(self._normalized, stats)
        self._actions = recorded

    @property
    def info(self) -> PolicyInfo:
        """Not a checkpoint."""
        return PolicyInfo(checkpoint="recorded actions", unnorm_key=self._spec.unnorm_key)

    @property
    def action_spec(self) -> ActionSpec:
        """That of the recording."""
        return self._spec

    def predict(self, observation: Observation) -> Prediction:
        """Return the recorded action that followed the image; NaN when none did.

        Raises:
            InstructionError: The instruction is empty.
        """
        if not observation.instruction:
            raise InstructionError("the instruction is empty")
        step = self._step_at(observation.stamp_ns)
        known = slice(step, step + 1) if step is not None else slice(0, 1)
        actions, normalized = self._actions[known], self._normalized[known]
        if step is None:
            actions, normalized = np.full_like(actions, np.nan), np.full_like(normalized, np.nan)
        return Prediction(
            actions=actions.copy(),
            normalized_actions=normalized.copy(),
            token_ids=self._token_ids[known][0].tolist(),
            unnorm_key=self._spec.unnorm_key,
            prompt=f"recorded: {observation.instruction}",
            timings={"total_ms": 0.0},
        )

    def view(self, image: np.ndarray) -> np.ndarray:
        """Return the image itself: nothing looks at it."""
        return image

    def self_test(self) -> None:
        """Return: a recording does not claim to look at its image."""

    def _step_at(self, stamp_ns: int) -> int | None:
        """The step whose image is the last at or before a time; None in a gap."""
        if stamp_ns == TRIAL_STAMP:
            return 0
        step = int(np.searchsorted(self._stamps, stamp_ns, side="right")) - 1
        if step < 0 or stamp_ns - self._stamps[step] >= self._valid_ns[step]:
            return None
        return step
