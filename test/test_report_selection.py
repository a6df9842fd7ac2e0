from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from report_case import invented_records, write_replay

from openvla_ros.evaluation.report.results import read_results
from openvla_ros.evaluation.report.selection import (
    MOST_EPISODES,
    MOST_FRAMES,
    MOST_OF_ONE_EPISODE,
    chosen_episodes,
    digest,
    distances,
    ranked_rows,
)


def rows(errors: list[float | None]) -> list[dict]:
    return [
        {"source": "bag", "episode": f"e{i}", "translation_error": error}
        for i, error in enumerate(errors)
    ]


def test_few_episodes_are_all_shown_in_their_order():
    shown = chosen_episodes(rows([2.0, 5.0, 1.0]))
    assert [(s.key[1], s.why) for s in shown] == [("e0", ""), ("e1", "worst"), ("e2", "best")]
    assert [s.why for s in chosen_episodes(rows([1.0]))] == [""]


@pytest.mark.parametrize("episodes", [7, 8, 40, 1000])
def test_of_many_the_worst_the_middle_and_the_best_are_shown(episodes: int):
    errors = np.random.default_rng(episodes).permutation(episodes).astype(float).tolist()
    shown = chosen_episodes(rows([*errors, None]))
    assert len(shown) == len({s.key for s in shown}) <= MOST_EPISODES
    by_why = {s.why: errors[int(s.key[1][1:])] for s in shown}
    assert by_why["worst"] == episodes - 1 and by_why["best"] == 0.0
    assert abs(by_why["median"] - episodes / 2) <= 2


def test_episodes_without_a_recording_come_last():
    ranked = ranked_rows(rows([None, 1.0, 3.0]))
    assert [row["episode"] for row in ranked] == ["e2", "e1", "e0"]
    assert len(chosen_episodes(rows([None] * 9))) <= MOST_EPISODES


def test_worst_frames_are_the_furthest_and_of_different_episodes(tmp_path: Path):
    records = invented_records(8, 16)
    write_replay(tmp_path, {"base": records})
    results = read_results(tmp_path)
    found = digest(results, "base")
    assert len(found.worst) == MOST_FRAMES
    far = [worst.distance for worst in found.worst]
    assert far == sorted(far, reverse=True)
    names = [worst.episode for worst in found.worst]
    assert max(names.count(name) for name in names) <= MOST_OF_ONE_EPISODE
    top = max(
        float(distances(record, results.figures("base"), results)[record.worst_steps].max())
        for record in records
    )
    assert far[0] == pytest.approx(top)
    worst = found.worst[0]
    record = next(r for r in records if r.episode == worst.episode)
    place = record.worst_steps.tolist().index(worst.step)
    assert worst.jpeg == record.worst_frames[place].tobytes()


def test_latencies_are_counted_against_the_step_of_their_episode(tmp_path: Path):
    slow, fast = invented_records(2, 10)
    slow = dataclasses.replace(slow, latency_ms=np.full(10, 201.0))
    fast = dataclasses.replace(fast, latency_ms=np.full(10, 199.0))
    write_replay(tmp_path, {"base": [slow, fast]})
    found = digest(read_results(tmp_path), "base")
    assert found.late == 0.5 and found.step_ms == (200.0,) and len(found.latency_ms) == 20


def test_what_was_not_recorded_has_no_distance_and_a_damaged_picture_is_left_out(tmp_path: Path):
    (record,) = invented_records(1, 10)
    recorded = record.recorded.copy()
    recorded[3] = np.nan
    recorded[4, 6] = np.nan  # a topic without a gripper
    frames = (np.frombuffer(b"no picture", np.uint8), *record.worst_frames[1:])
    record = dataclasses.replace(record, recorded=recorded, worst_frames=frames)
    write_replay(tmp_path, {"base": [record]})
    results = read_results(tmp_path)
    far = distances(record, results.figures("base"), results)
    assert np.isnan(far[3]) and np.isfinite(np.delete(far, 3)).all()
    assert record.worst_steps[0] not in [worst.step for worst in digest(results, "base").worst]
