"""Episodes in closed loop: what the policy gets, what counts as success, and what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import sim_cells

from openvla_ros.action_specs import load_action_spec
from openvla_ros.cli import main
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.motion.motion_replay import as_prediction
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.closed_loop import drivers
from openvla_ros.sim.closed_loop.drivers import (
    EXPERT_KEY,
    TRAINING_SEED,
    Driver,
    PicturePolicy,
    blackened,
    control_driver,
    policy_driver,
)
from openvla_ros.sim.closed_loop.episode import EpisodeResult, assign, run_episode
from openvla_ros.sim.closed_loop.evaluation import Trial, report, run_trial
from openvla_ros.sim.closed_loop.figures import summary
from openvla_ros.sim.closed_loop.gallery import INDEX, Gallery
from openvla_ros.types import ActionSpec, Observation, Policy, Prediction

SPEC = load_action_spec(EXPERT_KEY)
STAND = as_prediction(np.array([0.0] * 6 + [1.0]), EXPERT_KEY)


@pytest.fixture
def cell() -> SimCell:
    sim_cells.require_cell()
    return sim_cells.shared_cell()


class Spy(Policy):
    """Keeps everything that it is given, and stands still."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    @property
    def action_spec(self) -> ActionSpec:
        return SPEC

    def predict(self, observation: Observation) -> Prediction:
        self.seen.append(observation)
        return STAND


def expert(cell: SimCell, kind: str = "reach") -> Driver:
    return control_driver("expert", cell, kind)


# What goes in ---------------------------------------------------------------------------------


def test_a_policy_is_a_function_of_a_picture_and_a_text() -> None:
    assert get_args(PicturePolicy) == ([np.ndarray, str], Prediction)


def test_the_policy_gets_the_picture_and_the_text_and_nothing_else(cell: SimCell) -> None:
    sim_cells.require_pictures()
    spy = Spy()
    trial = Trial(episodes=1, first_seed=5, step_limit=3)
    (result,) = run_trial(cell, policy_driver(spy), trial)
    assert len(spy.seen) == 3
    for observation in spy.seen:
        assert list(observation.images) == ["primary"] and observation.proprio is None
        assert observation.images["primary"].shape == (224, 224, 3)
        assert observation.images["primary"].std() > 20.0
        assert observation.instruction == result.instruction
        assert observation.prepared is None
    assert not result.succeeded


def test_black_pictures_are_black_and_the_text_stays(cell: SimCell) -> None:
    sim_cells.require_pictures()
    spy = Spy()
    run_trial(cell, blackened(policy_driver(spy)), Trial(episodes=1, step_limit=2))
    assert all(not o.images["primary"].any() and o.instruction for o in spy.seen)
    with pytest.raises(ConfigurationError, match="looks at the state"):
        blackened(expert(cell))


# What comes of it -------------------------------------------------------------------------------


def test_the_expert_succeeds_and_every_run_is_the_same(cell: SimCell) -> None:
    trial = Trial(episodes=4, first_seed=20)
    first = run_trial(cell, expert(cell), trial)
    assert all(result.succeeded for result in first)
    assert all(result.done_with == [result.target] for result in first)
    again = run_trial(cell, expert(cell), trial)
    assert [r.to_dict() for r in first] == [r.to_dict() for r in again]


def test_latency_costs_time_and_too_much_of_it_everything(cell: SimCell) -> None:
    def steps_at(latency_ms: float, limit: int = 0) -> list[EpisodeResult]:
        trial = Trial(episodes=2, latency_ms=latency_ms, step_limit=limit)
        return run_trial(cell, expert(cell), trial)

    quick, slow, stale = steps_at(0), steps_at(400), steps_at(700, limit=12)
    assert all(r.succeeded for r in quick + slow)
    assert sum(r.steps for r in slow) > 1.5 * sum(r.steps for r in quick)
    assert not any(r.succeeded for r in stale)
    assert all(r.refused == {"stale": r.answers} for r in stale)


def test_a_step_limit_ends_an_episode(cell: SimCell) -> None:
    (result,) = run_trial(cell, expert(cell), Trial(episodes=1, step_limit=2))
    assert not result.succeeded and result.steps == 2.0 and result.answers == 2


def test_swapped_instructions_name_another_block_of_the_same_scene(cell: SimCell) -> None:
    for seed in range(30, 36):
        plain = assign(cell, "reach", seed)
        scene = cell.scene
        swapped = assign(cell, "reach", seed, is_swapped=True)
        assert cell.scene == scene
        assert swapped.original == plain.task
        assert swapped.task.target != plain.task.target
        assert swapped.task.target in swapped.task.instruction
        assert swapped.task.target not in swapped.others


def test_who_listens_follows_the_swapped_text_and_who_does_not_is_found_out(cell: SimCell) -> None:
    trial = Trial(episodes=4, first_seed=30, is_swapped=True, step_limit=14)
    listens = summary(run_trial(cell, expert(cell), trial))
    assert listens["success_rate"] == 1.0
    assert listens["went_to"] == {"named": 4, "original": 0, "other": 0, "none": 0}
    deaf = run_trial(cell, control_driver("nearest", cell, "reach"), trial)
    for result in deaf:
        assert result.done_with[0] == result.nearest
        assert result.succeeded == (result.target == result.nearest)


def test_the_mean_action_of_the_expert_reaches_nothing(
    cell: SimCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "MEAN_EPISODES", 3)
    constant = control_driver("constant", cell, "reach")
    results = run_trial(cell, constant, Trial(episodes=3, step_limit=10))
    assert summary(results)["successes"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "throw"}, "reach, push, pick, place"),
        ({"episodes": 0}, "episodes is 0"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"parameters": {"stream_rate": 200.0}}, "20, 25, 50 or 100"),
        ({"parameters": {"twist_mode": "jump"}}, "twist_mode"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Trial(**arguments)


def test_seeds_of_training_are_refused(cell: SimCell) -> None:
    with pytest.raises(ConfigurationError, match="demonstrations"):
        assign(cell, "reach", TRAINING_SEED)


# What is reported -------------------------------------------------------------------------------


def result_of(seed: int, target: str, done_with: list[str], nearest: str = "red") -> EpisodeResult:
    succeeded = target in done_with
    steps = 10.0 if succeeded else 40.0
    return EpisodeResult(
        seed, f"reach the {target} block", target, "blue", nearest, succeeded, steps, done_with
    )


def test_the_report_counts_what_happened() -> None:
    results = [
        result_of(0, "red", ["red"]),
        result_of(1, "red", ["blue", "red"]),
        result_of(2, "green", ["blue"]),
        result_of(3, "green", ["purple"]),
        result_of(4, "green", []),
    ]
    found = report(results, Trial(episodes=5), {"kind": "expert"}, through="process", arm="viperx")
    assert found == json.loads(json.dumps(found)), "JSON loses something"
    assert (found["successes"], found["episodes"], found["success_rate"]) == (2, 5, 0.4)
    low, high = found["interval"]
    assert (low, high) == pytest.approx((0.1176, 0.7693), abs=1e-4)
    assert found["mean_steps_to_success"] == 10.0
    assert found["nearest_share"] == 0.4
    assert found["went_to"] == {"named": 1, "original": 2, "other": 1, "none": 1}
    assert found["per_colour"]["red"]["success_rate"] == 1.0
    assert found["per_instruction"]["reach the green block"]["episodes"] == 3
    for key in ("seeds", "versions", "latency_ms", "twist_mode", "policy", "node_parameters"):
        assert found[key] is not None, key


def test_a_failed_episode_is_in_the_gallery(cell: SimCell, tmp_path: Path) -> None:
    sim_cells.require_pictures()
    gallery = Gallery(tmp_path / "failures", SPEC, "Failures")
    assignment = assign(cell, "reach", 3)
    result = run_episode(
        cell, expert(cell), assignment, Trial().config, step_limit=2, keeps_moments=True
    )
    assert len(result.moments) == 2
    gallery.add(result, cell.scene)
    gallery.add(result_of(4, "red", ["red"]), cell.scene)
    page = gallery.finish().read_text(encoding="utf-8")
    assert (tmp_path / "failures" / "seed_000003.png").stat().st_size > 10_000
    assert result.instruction in page and "1 of 2 episodes failed" in page
    with pytest.raises(ConfigurationError, match="not empty"):
        Gallery(tmp_path / "failures", SPEC, "Failures")
    assert (tmp_path / "failures" / INDEX).exists()


def test_the_mark_is_about_the_named_block(cell: SimCell) -> None:
    """The ring's pixels surround the block that the segmentation shows."""
    from openvla_ros.sim.closed_loop.gallery import _marked

    sim_cells.require_pictures()
    assignment = assign(cell, "reach", 3)
    colour = assignment.task.target
    number = [block.colour for block in cell.scene.blocks].index(colour)
    seen = np.argwhere(cell.seen_geoms(224, 224) == cell.block_geom(number)).mean(axis=0)
    result = run_episode(
        cell, expert(cell), assignment, Trial().config, step_limit=1, keeps_moments=True
    )
    moment = result.moments[0]
    changed = np.argwhere((_marked(moment, colour, cell.scene) != moment.picture).any(axis=2))
    np.testing.assert_allclose(changed.mean(axis=0), seen, atol=4.0)


def test_the_command_prints_json_and_a_table_for_lists(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sim_cells.require_cell()
    asked = ["sim", "eval", "--policy", "expert", "--episodes", "1", "--seed", "7"]
    out = tmp_path / "new" / "result.json"
    assert main([*asked, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text(encoding="utf-8"))
    assert printed["success_rate"] == 1.0 and printed["seeds"] == [7, 7]
    assert set(printed["per_instruction"]) == {printed["results"][0]["instruction"]}
    assert main([*asked, "--latency-ms", "0,700", "--mode", "exact", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["latency_ms"], row["successes"]) for row in rows] == [(0.0, 1), (700.0, 0)]
    assert {row["twist_mode"] for row in rows} == {"exact"}
    assert main(asked) == 0
    assert "1/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "clever"], "checkpoint, expert, constant, nearest"),
        (["--policy", "expert", "--black-image"], "give a checkpoint"),
        (["--policy", "expert", "--latency-ms", "fast"], "0,200,400"),
        (["--policy", "expert", "--through", "mail"], "process, ros"),
        (["--policy", "expert", "--seed", str(TRAINING_SEED)], "demonstrations"),
    ],
)
def test_a_wrong_option_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sim_cells.require_cell()
    assert main(["sim", "eval", "--episodes", "1", *arguments]) == 1
    assert message in capsys.readouterr().err
