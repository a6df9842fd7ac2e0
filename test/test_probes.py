"""Sanity probes: which frames are asked, with what, and that the answers survive a file."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.diagnosis.probes import (
    AS_IS,
    BGR,
    BLACK,
    MIRRORED,
    NOISE,
    PROBES,
    SWAPPED,
    UNRELATED_INSTRUCTION,
    UPSIDE_DOWN,
    ProbeResult,
    chosen_steps,
    run_probes,
)
from openvla_ros.types import PRIMARY, Observation, Policy, Prediction


class Watching(Policy):
    """Answers brightness, colour, place of the light and length of the instruction."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def predict(self, observation: Observation) -> Prediction:
        self.seen.append(observation)
        image = observation.images[PRIMARY]
        answer = np.array(
            [
                image.mean(),
                image[..., 0].mean(),
                image[..., 2].mean(),
                image[:, : image.shape[1] // 2].mean(),
                image[: image.shape[0] // 2].mean(),
                len(observation.instruction),
                1.0,
            ]
        )
        ids = (31999 - answer).astype(int)
        return Prediction(answer[None], answer[None] / 255.0, ids.tolist(), "test")


def episode(name: str, instruction: str, steps: int = 10, seed: int = 0) -> Episode:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 100, (steps, 8, 6, 3), dtype=np.uint8)
    frames[:, :4, :3, 0] += 100  # red light, top left
    actions = random.normal(size=(steps, 7))
    actions[0] = np.nan
    stamps = np.arange(1, steps + 1) * 200_000_000
    return Episode(name, "a bag", instruction, 5.0, stamps, actions, lambda: iter(frames))


EPISODES = [episode("a", "open the drawer"), episode("b", "Close it.", seed=1)]


def test_frames_are_chosen_evenly_over_episodes_and_steps() -> None:
    for lengths in ([10, 10, 10], [3, 500, 40], [7], [5] * 200):
        chosen = chosen_steps(lengths, 64)
        assert len(chosen) == len(lengths) and sum(map(len, chosen)) <= 64
        for steps, length in zip(chosen, lengths, strict=True):
            assert len(set(steps.tolist())) == len(steps)
            assert all(0 <= step < length for step in steps)
    assert [len(steps) for steps in chosen_steps([100] * 4, 64)] == [16] * 4
    assert chosen_steps([8], 4)[0].tolist() == [1, 3, 5, 7]
    few = chosen_steps([5] * 200, 10)
    assert np.diff([i for i, steps in enumerate(few) if len(steps)]).tolist() == [20] * 9


def test_every_frame_is_asked_as_it_is_and_under_each_probe() -> None:
    policy = Watching()
    result = run_probes(policy, EPISODES, most_frames=6)
    assert len(result) == 6 and len(policy.seen) == 6 * len(PROBES)
    by_probe = dict(zip(PROBES, policy.seen[: len(PROBES)], strict=True))
    pictures = {name: seen.images[PRIMARY] for name, seen in by_probe.items()}
    frame = pictures[AS_IS]
    assert not pictures[BLACK].any()
    assert pictures[NOISE].std() > 50 and pictures[NOISE].shape == frame.shape
    assert np.array_equal(pictures[BGR], frame[:, :, ::-1])
    assert np.array_equal(pictures[MIRRORED], frame[:, ::-1])
    assert np.array_equal(pictures[UPSIDE_DOWN], frame[::-1, ::-1])
    assert np.array_equal(pictures[SWAPPED], frame)
    assert {by_probe[name].instruction for name in PROBES if name != SWAPPED} == {"open the drawer"}
    assert by_probe[SWAPPED].instruction == "Close it."
    assert result.swapped_instructions[0] == "Close it."


def test_no_probe_counts_as_a_frame_of_a_camera() -> None:
    policy = Watching()
    run_probes(policy, EPISODES, most_frames=2)
    assert {seen.stamp_ns for seen in policy.seen} == {0}


def test_what_was_recorded_stands_beside_the_answers() -> None:
    result = run_probes(Watching(), EPISODES, most_frames=6)
    assert result.episodes == ("a",) * 3 + ("b",) * 3
    for name, step, recorded in zip(result.episodes, result.steps, result.recorded, strict=True):
        source = next(e for e in EPISODES if e.name == name)
        assert np.array_equal(recorded, source.actions[step], equal_nan=True)


def test_the_same_seed_asks_the_same() -> None:
    first, second = (run_probes(Watching(), EPISODES, seed=3).to_dict() for _ in range(2))
    assert first == second
    assert run_probes(Watching(), EPISODES, seed=4).to_dict() != first


def test_a_single_task_is_swapped_for_an_unrelated_one_and_says_so() -> None:
    same = [episode("a", "open the drawer"), episode("b", "Open the  drawer.")]
    result = run_probes(Watching(), same, most_frames=4)
    assert set(result.swapped_instructions) == {UNRELATED_INSTRUCTION}
    assert UNRELATED_INSTRUCTION in result.swapped_by


def test_no_frame_after_the_last_chosen_one_is_read() -> None:
    read = []

    def images() -> Iterator[np.ndarray]:
        for step in range(1000):
            read.append(step)
            yield np.zeros((4, 4, 3), np.uint8)

    stamps = np.arange(1, 1001)
    long = Episode("a", "a bag", "wait", 5.0, stamps, np.zeros((1000, 7)), images)
    result = run_probes(Watching(), [long], most_frames=2)
    assert result.steps.tolist() == [250, 750]
    assert read[-1] == 750


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    run_probes(Watching(), EPISODES, most_frames=4, on_frame=lambda *count: told.append(count))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_answers_survive_a_json_file() -> None:
    result = run_probes(Watching(), EPISODES, most_frames=20)
    assert np.isnan(result.recorded).any()
    read = ProbeResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert read.to_dict() == result.to_dict()
    assert np.array_equal(read.recorded, result.recorded, equal_nan=True)
    assert all(np.array_equal(read.token_ids[p], result.token_ids[p]) for p in PROBES)


@pytest.mark.parametrize("missing", ["steps", "token_ids", "recorded"])
def test_a_damaged_file_is_refused_with_what_to_do(missing: str) -> None:
    stored = run_probes(Watching(), EPISODES, most_frames=2).to_dict()
    del stored[missing]
    with pytest.raises(ConfigurationError, match="Remove the file"):
        ProbeResult.from_dict(stored)
