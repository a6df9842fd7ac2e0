"""When two evaluations are the same one, and when they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from replay_cases import made_up_episodes, pixel_variant

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay.plan import plan_of, require_apart, versions
from openvla_ros.evaluation.replay.variants import Variant


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing at .*no_bag"):
        plan_of([tmp_path / "no_bag"], [pixel_variant()], {})


def test_a_plan_is_json_and_changes_with_whatever_changes_the_answers(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.write_bytes(b"messages")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"1")
    variant = Variant("base", str(checkpoint))
    plans = [plan_of([bag], [variant], {"camera": ""})]
    plans.append(plan_of([bag], [variant], {"camera": "wrist"}))
    plans.append(plan_of([bag], [replace(variant, dtype="float32")], {"camera": ""}))
    plans.append(plan_of([bag], [variant, replace(variant, name="b")], {"camera": ""}))
    (checkpoint / "weights").write_bytes(b"2")  # trained on, in the same folder
    plans.append(plan_of([bag], [variant], {"camera": ""}))
    bag.write_bytes(b"other messages")
    plans.append(plan_of([bag], [variant], {"camera": ""}))
    texts = [json.dumps(plan, sort_keys=True) for plan in plans]
    assert len(set(texts)) == len(texts)
    assert texts[-1] == json.dumps(plan_of([bag], [variant], {"camera": ""}), sort_keys=True)
    assert {"openvla_ros", "python", "numpy", "torch"} <= set(versions())


def test_episodes_in_memory_are_known_by_their_content() -> None:
    (episode,) = made_up_episodes(1)
    (same,) = made_up_episodes(1)
    other = replace(episode, instruction="something else")
    plans = [plan_of([e], [pixel_variant()], {}) for e in (episode, same, other)]
    assert plans[0] == plans[1] != plans[2]


def test_results_do_not_go_into_a_source(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    require_apart([bag], tmp_path / "bag_out")
    for inside in (bag, bag / "out", tmp_path / "x" / ".." / "bag" / "deep" / "out"):
        with pytest.raises(ConfigurationError, match="lies in the source"):
            require_apart([bag], inside)
