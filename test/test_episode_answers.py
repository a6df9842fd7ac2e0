"""One episode through one policy: each frame once, in order, with its own action beside it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from replay_cases import (
    ACTION,
    PixelPolicy,
    differences,
    made_up_episodes,
    noise_images,
    shared_checkpoint,
    with_images,
)

from openvla_ros.errors import ConfigurationError, ImageError, InstructionError
from openvla_ros.evaluation.replay.episode_answers import (
    WorstFrames,
    answer_episode,
    normalized_distance,
    small_jpeg,
)
from openvla_ros.evaluation.replay.policy_description import describe
from openvla_ros.evaluation.replay.variants import Variant
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.policy import OpenVLAPolicy

STATS = describe(MockPolicy(ACTION)).stats


def test_each_step_has_the_answer_to_its_own_image() -> None:
    (episode,) = made_up_episodes(1, steps=6)
    record = answer_episode(PixelPolicy(), episode, STATS)
    means = [image.mean(axis=(0, 1)) / 255.0 - 0.5 for image in noise_images(0, 6, 32)]
    np.testing.assert_array_equal(record.predicted[:, :3], means)
    np.testing.assert_array_equal(record.recorded, episode.actions)
    np.testing.assert_array_equal(record.stamps_ns, episode.stamps_ns)
    assert record.token_ids.shape == (6, 7) and record.is_valid.all()
    assert record.instruction == episode.instruction and record.rate_hz == 5.0


def test_what_the_policy_gets_is_stamped_as_a_frame_of_a_camera() -> None:
    """A stamp of 0 is a trial, which is decoded otherwise; data sets begin at 0."""
    (episode,) = made_up_episodes(1)
    policy = MockPolicy(ACTION, fault="invalid")  # strikes frames of a camera alone
    shifted = replace(episode, stamps_ns=episode.stamps_ns - episode.stamps_ns[0])
    assert not answer_episode(policy, shifted, STATS).is_valid.any()


def test_the_frames_of_the_worst_steps_are_kept_small() -> None:
    (episode,) = made_up_episodes(1, steps=8, side=640)
    far = episode.actions.copy()
    far[[5, 2, 7]] += np.array([[3.0], [2.0], [1.0]])
    episode = replace(episode, actions=far)
    record = answer_episode(MockPolicy(ACTION), episode, STATS)
    assert record.worst_steps.tolist() == [5, 2, 7]
    for step, jpeg in zip(record.worst_steps, record.worst_frames, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())), np.float64)
        assert shown.shape == (320, 320, 3)
        image = list(noise_images(0, 8, 640))[step].astype(np.float64)
        halved = image.reshape(320, 2, 320, 2, 3).mean(axis=(1, 3))
        others = list(noise_images(0, 8, 640))[(step + 1) % 8].astype(np.float64)
        wrong = others.reshape(320, 2, 320, 2, 3).mean(axis=(1, 3))
        assert np.abs(shown - halved).mean() < 0.7 * np.abs(shown - wrong).mean()


def test_a_narrow_frame_keeps_its_size() -> None:
    jpeg = small_jpeg(next(noise_images(0, 1, 48)))
    assert Image.open(io.BytesIO(jpeg.tobytes())).size == (48, 48)


def test_of_equally_bad_steps_the_first_stays_and_unknown_ones_never_do() -> None:
    worst = WorstFrames(2)
    image = np.zeros((4, 4, 3), np.uint8)
    for step, distance in enumerate([0.1, np.nan, 0.5, 0.5, 0.5, 0.2]):
        worst.offer(step, distance, image)
    assert worst.steps.tolist() == [2, 3] and len(worst.frames) == 2


def test_distance_is_over_what_was_recorded() -> None:
    normalized, recorded = np.zeros(7), np.full(7, np.nan)
    assert np.isnan(normalized_distance(normalized, recorded, STATS))
    recorded[:2] = 0.25, -0.75
    assert normalized_distance(normalized, recorded, STATS) == pytest.approx(0.5)


def test_a_recording_without_a_task_or_with_an_unusable_one_is_named() -> None:
    (episode,) = made_up_episodes(1)
    with pytest.raises(InstructionError, match="made up, episode_000000 has no instruction"):
        answer_episode(PixelPolicy(), replace(episode, instruction="  "), STATS)
    with pytest.raises(InstructionError, match="episode_000000"):
        answer_episode(PixelPolicy(), replace(episode, instruction="go</s>"), STATS)


def test_images_that_do_not_fit_the_steps_are_refused() -> None:
    (episode,) = made_up_episodes(1, steps=4)
    short = with_images(episode, lambda: noise_images(0, 3, 32))
    with pytest.raises(ConfigurationError, match="3 images for 4 steps"):
        answer_episode(PixelPolicy(), short, STATS)
    long = with_images(episode, lambda: noise_images(0, 5, 32))
    with pytest.raises(ConfigurationError, match="more images than its 4 steps"):
        answer_episode(PixelPolicy(), long, STATS)
    grey = with_images(episode, lambda: iter([np.zeros((8, 8), np.uint8)] * 4))
    with pytest.raises(ImageError, match=r"step 0 is \(8, 8\) uint8"):
        answer_episode(PixelPolicy(), grey, STATS)


def test_a_disk_that_fails_while_reading_is_a_broken_recording_and_its_file_is_closed() -> None:
    (episode,) = made_up_episodes(1, steps=4)
    closed = []

    def failing() -> Iterator[np.ndarray]:
        try:
            yield from noise_images(0, 2, 32)
            raise OSError(5, "Input/output error")
        finally:
            closed.append(True)

    with pytest.raises(ConfigurationError, match=r"image of step 2 cannot be read.*Input/output"):
        answer_episode(PixelPolicy(), with_images(episode, failing), STATS)
    assert closed == [True]


def test_actions_of_another_length_are_refused_with_the_key() -> None:
    (episode,) = made_up_episodes(1)
    longer = replace(episode, actions=np.zeros((4, 8)))
    with pytest.raises(ConfigurationError, match=r"8 numbers and the policy answers 7 .*'mock'"):
        answer_episode(PixelPolicy(), longer, STATS)


def test_at_most_one_frame_is_read_ahead_of_the_policy() -> None:
    (episode,) = made_up_episodes(1, steps=8)
    read = []

    def counted() -> Iterator[np.ndarray]:
        for image in noise_images(0, 8, 32):
            read.append(len(read))
            yield image

    seen = []
    answer_episode(
        PixelPolicy(), with_images(episode, counted), STATS, lambda: seen.append(len(read))
    )
    assert len(seen) == 8 and all(ahead <= step + 2 for step, ahead in enumerate(seen)), seen


def test_an_episode_is_answered_the_same_whatever_came_before_and_as_the_policy_does() -> None:
    """The draft of a first step used to be the last action of another episode."""
    policy = Variant("base", shared_checkpoint(), device="cpu").load()
    assert isinstance(policy, OpenVLAPolicy)
    stats = policy.norm_stats["bridge_orig"]
    first, second = made_up_episodes(2, steps=3)
    alone = answer_episode(policy, second, stats)
    answer_episode(policy, first, stats)
    after = answer_episode(policy, second, stats)
    assert differences(alone, after) == []
    for step, image in enumerate(second.open_images()):
        plain = policy.predict_action(image, second.instruction)
        assert alone.token_ids[step].tolist() == plain.token_ids
        np.testing.assert_array_equal(alone.predicted[step], plain.action)
        np.testing.assert_array_equal(alone.normalized[step], plain.normalized)
