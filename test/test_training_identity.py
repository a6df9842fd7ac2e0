"""What may change between two parts of a run, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_cases import run_config

from openvla_ros.errors import ConfigurationError
from openvla_ros.training.config_file import config_from, plain_config
from openvla_ros.training.identity import identify, require_same

PLACE = Path("somewhere")


def identity(world_size: int = 1, **settings: Any) -> dict[str, Any]:
    return identify(run_config(PLACE, PLACE, **settings), "fingerprint", [], world_size)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimization__max_steps": 100},
        {"run__save_every": 7, "run__keep": 9, "run__log_every": 3},
        {"run__evaluate_every": 5, "run__evaluation_samples": 9, "run__target_accuracy": 0.9},
        {"data__workers": 3, "data__cache_folder": "elsewhere", "run__tensorboard": True},
        {"run__out": "elsewhere", "run__wandb_project": "arm"},
    ],
)
def test_what_changes_no_weight_may_change(settings: dict[str, Any]) -> None:
    require_same(identity(), identity(**settings), "run")


def test_places_may_change_because_contents_are_compared() -> None:
    plain = plain_config(run_config(PLACE, PLACE))
    plain["base"], plain["data"]["sources"][0]["path"] = "elsewhere", "elsewhere"
    plain["data"]["sources"][0]["action_spec"] = {"kind": "eef_delta"}  # says, changes nothing
    require_same(identity(), identify(config_from(plain), "fingerprint", [], 1), "run")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimization__accumulation": 2}, "optimization.accumulation: 1 before, 2 now"),
        ({"run__precision": "bfloat16"}, "run.precision"),
        ({"strategy__name": "full"}, "strategy.name: 'lora' before, 'full' now"),
        ({"data__held_out": 0.1}, "data.held_out"),
        ({"world_size": 2}, "processes: 1 before, 2 now"),
        ({"optimization__auxiliary_losses": {"depth": 0.5}}, "optimization.auxiliary_losses"),
    ],
)
def test_what_changes_the_course_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match="run holds another run") as caught:
        require_same(identity(), identity(**settings), "run")
    assert named in str(caught.value)


def test_a_schedule_that_ends_at_the_last_step_fixes_it() -> None:
    before = identity(optimization__schedule="cosine")
    with pytest.raises(ConfigurationError, match=r"optimization\.max_steps: 6 before, 8 now"):
        now = identity(optimization__schedule="cosine", optimization__max_steps=8)
        require_same(before, now, "run")
