"""What the figures need to know about a policy once it is gone: units, statistics, action ids.

Kept as JSON beside the records, so that a report is made without loading the policy again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openvla_ros.errors import SelfTestError
from openvla_ros.model.action_stats import ActionStats
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec, Finding, Policy, PolicyInfo

SECTION = "policy"
_ARRAYS: dict[str, type] = {"q01": float, "q99": float, "mask": bool, "constant": bool}
_BLIND = "does not look at its image"  # of the self test's text


@dataclass(frozen=True)
class PolicyDescription:
    """One loaded policy, described.

    Attributes:
        info: Which policy, and its choices.
        spec: What the numbers of an action mean.
        norm_stats: Every statistics key of the checkpoint.
        unnorm_key: The one in use.
        vocab_size: Ids of the text vocabulary; action ids are the last of them.
        n_action_bins: Number of action ids.
        self_test: Why the self test failed, or "".
    """

    info: PolicyInfo
    spec: ActionSpec
    norm_stats: Mapping[str, ActionStats]
    unnorm_key: str
    vocab_size: int = 32000
    n_action_bins: int = 256
    self_test: str = ""

    @property
    def stats(self) -> ActionStats:
        """The statistics in use."""
        return self.norm_stats[self.unnorm_key]

    @property
    def tokenizer(self) -> ActionTokenizer:
        """The action ids of the policy."""
        return ActionTokenizer(self.vocab_size, self.n_action_bins)

    def findings(self) -> list[Finding]:
        """Return what the self test found: a problem, or nothing."""
        if not self.self_test:
            return []
        item = "blind" if _BLIND in self.self_test else "self test"
        return [Finding(SECTION, item, "failed", self.self_test, "problem")]

    def to_dict(self) -> dict[str, Any]:
        """Return the form that `from_dict` reads, as JSON types."""
        return {
            "info": asdict(self.info) | {"choices": dict(self.info.choices)},
            "spec": asdict(self.spec) | {"sources": dict(self.spec.sources)},
            "norm_stats": {key: _stored(stats) for key, stats in self.norm_stats.items()},
            "unnorm_key": self.unnorm_key,
            "vocab_size": self.vocab_size,
            "n_action_bins": self.n_action_bins,
            "self_test": self.self_test,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> PolicyDescription:
        """Return the description that `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        return cls(
            info=PolicyInfo(**stored["info"]),
            spec=ActionSpec(**stored["spec"]),
            norm_stats={key: _read(key, entry) for key, entry in stored["norm_stats"].items()},
            unnorm_key=stored["unnorm_key"],
            vocab_size=stored["vocab_size"],
            n_action_bins=stored["n_action_bins"],
            self_test=stored["self_test"],
        )


def describe(policy: Policy) -> PolicyDescription:
    """Return the description of a loaded policy; its self test runs.

    Raises:
        ActionStatsError: The policy has statistics of several datasets and none was chosen.
    """
    try:
        policy.self_test()
        failure = ""
    except SelfTestError as error:
        failure = str(error)
    spec = policy.action_spec
    key = spec.unnorm_key
    norm_stats = getattr(policy, "norm_stats", None) or {key: _as_they_are(key)}
    tokenizer = getattr(policy, "action_tokenizer", None) or ActionTokenizer()
    return PolicyDescription(
        info=policy.info,
        spec=spec,
        norm_stats=norm_stats,
        unnorm_key=key,
        vocab_size=tokenizer.vocab_size,
        n_action_bins=tokenizer.n_action_bins,
        self_test=failure,
    )


def _as_they_are(unnorm_key: str) -> ActionStats:
    """Return the statistics of a policy without any: its normalised actions are its actions."""
    ones = np.ones(7)
    return ActionStats(unnorm_key, -ones, ones, np.zeros(7, bool), "the policy, which has none")


def _stored(stats: ActionStats) -> dict[str, Any]:
    return {"source": stats.source} | {name: getattr(stats, name).tolist() for name in _ARRAYS}


def _read(unnorm_key: str, stored: Mapping[str, Any]) -> ActionStats:
    arrays: dict[str, Any] = {name: np.array(stored[name], kind) for name, kind in _ARRAYS.items()}
    return ActionStats(unnorm_key, source=stored["source"], **arrays)
