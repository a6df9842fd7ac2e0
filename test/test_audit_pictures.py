"""Frames as they stream: repeats, colours, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_episodes import WHY_NOT, has_recordings
from colour_statistics import REVERSED_BELOW, frames100

from openvla_ros.evaluation.audit.pictures import (
    colour_reference,
    judge_colours,
    judge_repeats,
    judge_sizes,
    look_at,
    measure_colours,
)

RATE_HZ = 5.0


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


def repeat_level(repeated: list[int], moving: list[int]) -> dict[str, str]:
    findings = judge_repeats(["e"], [np.array(repeated, bool)], [np.array(moving, bool)], [RATE_HZ])
    return {f.item: f.level for f in findings if f.level != "ok"}


def test_repeat_is_equal_in_every_pixel_to_the_frame_before() -> None:
    a, b = noise(2)
    almost = a.copy()
    almost[-1, -1, -1] ^= 1
    facts = look_at([a, a, b, a, almost, almost])
    np.testing.assert_array_equal(facts.is_repeated, [0, 1, 0, 0, 0, 1])


def test_statistics_are_those_of_numpy() -> None:
    frames = noise(3)
    facts = look_at(frames)
    np.testing.assert_allclose(facts.channel_mean, frames.mean((0, 1, 2)))
    np.testing.assert_allclose(facts.channel_std, frames.std((0, 1, 2)))
    flat = frames.reshape(-1, 3).astype(int)
    has_colour = np.ptp(flat, axis=1) > 40
    assert facts.saturated == has_colour.sum()
    assert facts.warm == (has_colour & (flat[:, 0] > flat[:, 2])).sum()


def test_large_frames_are_sampled_evenly() -> None:
    large = np.kron(noise(1)[0], np.ones((10, 10, 1), np.uint8))
    facts = look_at([large])
    assert facts.pixels <= 128 * 128
    np.testing.assert_allclose(facts.channel_mean, large.mean((0, 1)), atol=3)


def test_camera_that_stands_still_while_the_arm_moves_is_a_problem() -> None:
    assert repeat_level([0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]) == {"frozen camera": "problem"}


def test_same_picture_of_an_arm_at_rest_is_no_fault() -> None:
    assert repeat_level([0, 1, 1, 1, 1, 1], [0] * 6) == {}


def test_camera_slower_than_the_recording_is_noted() -> None:
    assert repeat_level([0, 1] * 20, [0] + [1] * 39) == {"repeated frames": "warn"}


def test_sizes_of_one_camera_are_one() -> None:
    one, other = look_at(noise(2)), look_at(noise(1)[:, ::2])
    assert judge_sizes([one, one]).level == "ok"
    assert judge_sizes([one, other]).level == "warn"


def test_grey_frames_have_no_order_of_colours() -> None:
    grey = np.repeat(noise(2)[..., :1], 3, axis=3)
    colours = measure_colours([look_at(grey)])
    assert colours is not None
    finding = judge_colours(colours, colour_reference())
    assert (finding.level, finding.value[:3]) == ("ok", "n/a")


def test_no_frames_have_no_colours() -> None:
    assert measure_colours([look_at([])]) is None


@pytest.mark.skipif(not has_recordings(), reason=WHY_NOT)
def test_shipped_reference_is_that_of_the_frames_it_names() -> None:
    colours, reference = measure_colours([look_at([f]) for f in frames100()]), colour_reference()
    assert colours is not None
    np.testing.assert_allclose(reference.channel_mean, colours.channel_mean, atol=0.06)
    np.testing.assert_allclose(reference.channel_std, colours.channel_std, atol=0.06)
    assert reference.warm_share == pytest.approx(colours.warm_share, abs=6e-4)
    assert reference.reversed_below == REVERSED_BELOW
