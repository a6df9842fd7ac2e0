"""Recordings of the scripted expert: read back unchanged, the same for every machine, grounded."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sim_cells import require_pictures, shared_cell

from openvla_ros.cli import main
from openvla_ros.data.episode import Episode
from openvla_ros.data.sources import find_recordings, open_episodes
from openvla_ros.data.topics import read_topic_file
from openvla_ros.errors import ConfigurationError
from openvla_ros.sim.cell_model import places_in_picture
from openvla_ros.sim.expert import expert_action
from openvla_ros.sim.recording.grounding import read_grounding
from openvla_ros.sim.recording.moments import moment_answers
from openvla_ros.sim.recording.options import RecordingOptions
from openvla_ros.sim.recording.run import record_moments
from openvla_ros.sim.scene import COLOURS
from openvla_ros.sim.states import sample_state

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
require_pictures()

TOPICS = Path(__file__).resolve().parents[1] / "config" / "topics" / "sim.yaml"
SMALL = RecordingOptions(width=96, height=96, steps_per_episode=2)
PICTURES = 5


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "moments"
    record_moments(folder, PICTURES, SMALL)
    return folder


def episodes_of(folder: Path) -> list[Episode]:
    topics = read_topic_file(TOPICS)
    return [e for bag in find_recordings(folder) for e in open_episodes(bag, topics=topics)]


@cache
def answers() -> list:
    cell = shared_cell()
    return [a for i in range(PICTURES) for a in moment_answers(cell, SMALL, i)]


def test_every_picture_is_recorded_once_for_each_colour(moments: Path) -> None:
    episodes = episodes_of(moments)
    assert sum(map(len, episodes)) == 3 * PICTURES
    assert max(map(len, episodes)) == SMALL.steps_per_episode
    for answer in answers()[:3]:
        assert answer.task.target in answer.task.instruction
    assert len({a.task.target for a in answers()[:3]}) == 3


def test_actions_are_read_back_as_the_expert_gave_them(moments: Path) -> None:
    said: dict[str, list[np.ndarray]] = {}
    for answer in answers():
        said.setdefault(answer.task.instruction, []).append(answer.step.action)
    read: dict[str, list[np.ndarray]] = {}
    for episode in episodes_of(moments):
        read.setdefault(episode.instruction, []).extend(episode.actions)
    assert read.keys() == said.keys()
    for instruction, actions in said.items():
        np.testing.assert_allclose(read[instruction], actions, atol=1e-9)


def test_the_label_is_the_expert_s_for_the_colour_that_is_named() -> None:
    cell = shared_cell()
    found = moment_answers(cell, SMALL, 0)
    moment = sample_state(cell, SMALL.seed)
    for answer in found:
        task = replace(moment.task, target=answer.task.target)
        np.testing.assert_array_equal(answer.step.action, expert_action(task, moment.state))
    assert len({tuple(a.step.action[:2]) for a in found}) == 3


def test_pictures_are_those_of_the_cell(moments: Path) -> None:
    cell = shared_cell()
    sample_state(cell, SMALL.seed)
    picture = cell.render(96, 96).astype(float)
    first = next(a for a in answers()).task.instruction
    episode = next(e for e in episodes_of(moments) if e.instruction == first)
    off = np.abs(next(episode.open_images()) - picture).mean()
    assert off < 4.0, f"{off:.1f} grey levels off"  # JPEG


def test_more_processes_and_another_time_give_the_same_bytes(moments: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    record_moments(again, PICTURES, SMALL, workers=2)
    files = {f.relative_to(moments) for f in moments.rglob("*.mcap")}
    assert files == {f.relative_to(again) for f in again.rglob("*.mcap")}
    for file in files:
        assert (moments / file).read_bytes() == (again / file).read_bytes(), file
    for name, grounding in read_grounding(moments).items():
        np.testing.assert_array_equal(grounding.blocks, read_grounding(again)[name].blocks)


def test_another_seed_gives_other_pictures() -> None:
    other = moment_answers(shared_cell(), replace(SMALL, seed=SMALL.seed + 100), 0)[0]
    assert not any(np.array_equal(other.step.jpeg, answer.step.jpeg) for answer in answers())


def test_a_block_is_where_its_grounding_says() -> None:
    cell = shared_cell()
    for seed in range(5):
        moment = sample_state(cell, SMALL.seed + seed)
        geoms = cell.seen_geoms(224, 224)
        for number, block in enumerate(cell.scene.blocks):
            rows, columns = np.nonzero(geoms == cell.block_geom(number))
            seen = (np.array([columns.mean(), rows.mean()]) + 0.5) / 224
            centre = moment.state.blocks[block.colour][None]
            place = places_in_picture(cell.scene, centre, 224, 224)[0]
            assert np.abs(place - seen).max() < 0.03, (seed, block.colour, place, seen)


def test_grounding_has_the_names_and_steps_of_training(moments: Path) -> None:
    from openvla_ros.training.config import DataConfig, SourceConfig
    from openvla_ros.training.datasets import open_training_sets

    source = SourceConfig(path=str(moments), name="sim_viperx", topics=str(TOPICS))
    data = DataConfig(sources=(source,), held_out=0.0, cache_folder=str(moments.parent / "cache"))
    [opened] = open_training_sets(data, seed=0)
    grounding = read_grounding(moments)
    said = {(a.task.instruction, tuple(np.round(a.step.action, 7))): a for a in answers()}
    assert {e.name for e in opened.episodes} == grounding.keys()
    for episode in opened.episodes:
        places = grounding[episode.name]
        assert len(places) == len(episode)
        for step, action in enumerate(episode.actions):
            answer = said[episode.instruction, tuple(np.round(action, 7))]
            np.testing.assert_array_equal(places.target[step], answer.step.grounding.target[0])
            np.testing.assert_array_equal(places.blocks[step], answer.step.grounding.blocks[0])
            colour = list(COLOURS).index(answer.task.target)
            np.testing.assert_array_equal(places.blocks[step, colour], places.target[step])
            assert np.isfinite(places.blocks[step]).all(axis=1).sum() == 3


def test_one_bag_is_grounded_by_the_name_it_has_alone(moments: Path) -> None:
    bag = find_recordings(moments)[0]
    [episode] = open_episodes(bag, topics=read_topic_file(TOPICS))
    assert read_grounding(bag).keys() == {episode.name}


def test_a_held_block_is_the_only_one_that_is_asked_for() -> None:
    cell, options = shared_cell(), replace(SMALL, tasks=("pick",))
    counts = set()
    for number in range(12):
        found = moment_answers(cell, options, number)
        counts.add(len(found))
        is_held = cell.state().is_held(cell.task.target)
        assert len(found) == (1 if is_held else 3)
    assert counts == {1, 3}


@pytest.mark.parametrize("kind", ["push", "place"])
def test_a_push_and_the_plate_are_for_the_block_that_was_drawn(kind: str) -> None:
    cell = shared_cell()
    [answer] = moment_answers(cell, replace(SMALL, tasks=(kind,)), 0)
    assert answer.task == cell.task


def test_a_folder_that_holds_something_is_refused(moments: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not empty"):
        record_moments(moments, 1, SMALL)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"tasks": ("stack",)}, "stack"), ({"seed": -1}, "seed"), ({"jpeg_quality": 0}, "jpeg")],
)
def test_options_that_make_no_sense_are_refused(change: dict, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        replace(SMALL, **change)


def test_the_command_records_what_the_audit_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "moments"
    line = ["sim", "record", str(out), "--moments", "3", "--width", "96", "--height", "96"]
    assert main([*line, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 9
    note = json.loads((out / "recording.json").read_text())
    assert note["options"]["seed"] == 1_000_000 and note["moments"] == 3
    assert main(["audit", str(out), "--topics", str(TOPICS), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert not [f for f in findings if f["level"] == "problem"], findings
