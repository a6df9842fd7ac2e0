"""What is kept of a policy: enough to make the figures without loading it again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from replay_cases import ACTION, BlindPolicy, shared_checkpoint

from openvla_ros.evaluation.replay.policy_description import PolicyDescription, describe
from openvla_ros.evaluation.replay.variants import Variant
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.model.action_stats import unnormalize


def through_json(described: PolicyDescription) -> PolicyDescription:
    return PolicyDescription.from_dict(json.loads(json.dumps(described.to_dict())))


def test_a_description_comes_back_as_it_was() -> None:
    described = describe(Variant("base", shared_checkpoint(), device="cpu").load())
    read = through_json(described)
    assert read.to_dict() == described.to_dict()
    assert (read.spec, read.unnorm_key) == (described.spec, "bridge_orig")
    assert read.info == replace(described.info, choices=dict(described.info.choices))
    assert read.spec.translation_unit_m == 1.0 and read.findings() == []
    for name in ("q01", "q99", "mask", "constant"):
        np.testing.assert_array_equal(getattr(read.stats, name), getattr(described.stats, name))
        assert getattr(read.stats, name).dtype == getattr(described.stats, name).dtype


def test_a_policy_without_statistics_keeps_its_numbers() -> None:
    described = describe(MockPolicy(ACTION))
    numbers = np.array([0.3, -0.2, 0.1, 0.0, 0.5, -0.5, 1.0])
    np.testing.assert_array_equal(unnormalize(numbers, described.stats), numbers)
    assert described.tokenizer.is_action_token([31999, 31744]).all()


def test_a_blind_policy_is_described_and_its_blindness_is_a_problem() -> None:
    (finding,) = through_json(describe(BlindPolicy())).findings()
    assert (finding.item, finding.level) == ("blind", "problem")
    assert "does not look at its image" in finding.reason


def test_another_failure_of_the_self_test_is_not_called_blindness() -> None:
    described = replace(describe(MockPolicy(ACTION)), self_test="logits that are not finite")
    (finding,) = described.findings()
    assert (finding.item, finding.level) == ("self test", "problem")


def test_something_else_is_no_description() -> None:
    for stored in ({}, {"info": 3}, {"info": {"x": 1}}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            PolicyDescription.from_dict(stored)
