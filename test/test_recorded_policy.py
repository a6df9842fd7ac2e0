"""A policy that answers with the recording: by the stamp of the image, to the last number."""

from __future__ import annotations

import numpy as np
import pytest
from motion_episodes import PERIOD_NS, SPEC, START_NS, episode_of, octo_actions

from openvla_ros.errors import ActionStatsError, ConfigurationError, InstructionError
from openvla_ros.evaluation.motion.recorded_policy import TRIAL_STAMP, RecordedPolicy
from openvla_ros.model.action_stats import ActionStats, normalize, parse_action_stats, unnormalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import PRIMARY, Observation

TOKENIZER = ActionTokenizer()
STATS = parse_action_stats(
    "bridge_orig",
    {
        "action": {
            "q01": [-0.03, -0.04, -0.04, -0.08, -0.09, -0.21, 0.0],
            "q99": [0.03, 0.04, 0.04, 0.08, 0.09, 0.2, 1.0],
            "mask": [True] * 6 + [False],
        }
    },
    "a test",
)


def seen(stamp_ns: int, instruction: str = "put spoon on towel") -> Observation:
    return Observation({PRIMARY: np.zeros((8, 8, 3), np.uint8)}, instruction, stamp_ns=stamp_ns)


def policy_of(*actions: np.ndarray, stats: ActionStats = STATS, **options) -> RecordedPolicy:
    episodes = [
        episode_of(a, name=f"episode_{i}", first_ns=START_NS + i * 10**11)
        for i, a in enumerate(actions)
    ]
    return RecordedPolicy(episodes, SPEC, stats, TOKENIZER, **options)


def test_every_step_is_answered_with_its_recorded_action() -> None:
    actions = octo_actions()[2]
    policy = policy_of(actions)
    for step, action in enumerate(actions):
        answer = policy.predict(seen(START_NS + step * PERIOD_NS))
        np.testing.assert_array_equal(answer.actions, action[None])
        np.testing.assert_array_equal(answer.normalized, normalize(action, STATS))
        assert answer.token_ids == TOKENIZER.encode(normalize(action, STATS)).tolist()
        assert answer.is_valid and answer.unnorm_key == "bridge_orig"
        assert answer.timings["total_ms"] == 0.0


def test_a_step_holds_until_the_next_image() -> None:
    actions = octo_actions()[2]
    answer = policy_of(actions).predict(seen(START_NS + 3 * PERIOD_NS + PERIOD_NS // 2))
    np.testing.assert_array_equal(answer.action, actions[3])


@pytest.mark.parametrize("stamp_ns", [START_NS - 1, START_NS + 11 * PERIOD_NS])
def test_before_and_after_the_recording_nothing_is_known(stamp_ns: int) -> None:
    answer = policy_of(octo_actions()[2]).predict(seen(stamp_ns))
    assert np.isnan(answer.actions).all() and answer.actions.shape == (1, 7)


def test_several_episodes_are_told_apart_by_their_time() -> None:
    first, second = octo_actions()[2:4]
    answer = policy_of(first, second).predict(seen(START_NS + 10**11 + PERIOD_NS))
    np.testing.assert_array_equal(answer.action, second[1])


def test_episodes_of_the_same_time_are_refused() -> None:
    episodes = [episode_of(a, name=f"episode_{i}") for i, a in enumerate(octo_actions()[:2])]
    with pytest.raises(ConfigurationError, match="episode_0 and episode_1 cover the same time"):
        RecordedPolicy(episodes, SPEC, STATS, TOKENIZER)


def test_a_trial_gets_an_action_although_no_camera_took_it() -> None:
    answer = policy_of(octo_actions()[2]).predict(seen(TRIAL_STAMP))
    assert np.isfinite(answer.action).all()


def test_through_tokens_it_answers_what_a_perfect_model_could() -> None:
    """Half a bin is lost, and what exceeds q01 and q99."""
    actions = octo_actions()[2].copy()
    actions[4, 2] = 0.09
    answer = policy_of(actions, through_tokens=True).predict(seen(START_NS + 4 * PERIOD_NS))
    cut = np.clip(actions[4], STATS.q01, STATS.q99)
    bins = np.where(STATS.mask, STATS.q99 - STATS.q01, 2.0) / 255
    assert (np.abs(answer.action - cut) <= bins / 2 + 1e-9).all()
    expected = unnormalize(TOKENIZER.decode(answer.token_ids), STATS)
    np.testing.assert_array_equal(answer.action, expected)


def test_what_was_not_recorded_is_nan() -> None:
    actions = octo_actions()[2].copy()
    actions[1] = np.nan
    for through_tokens in (False, True):
        policy = policy_of(actions, through_tokens=through_tokens)
        assert np.isnan(policy.predict(seen(START_NS + PERIOD_NS)).action).all()


def test_statistics_of_another_length_are_refused() -> None:
    with pytest.raises(ActionStatsError, match="6 numbers"):
        policy_of(np.zeros((3, 6)))


def test_it_says_that_it_is_no_checkpoint_and_wants_an_instruction() -> None:
    policy = policy_of(octo_actions()[2])
    assert policy.info.checkpoint == "recorded actions" and policy.action_spec is SPEC
    image = np.zeros((4, 4, 3), np.uint8)
    assert policy.view(image) is image
    policy.self_test()
    with pytest.raises(InstructionError, match="empty"):
        policy.predict(seen(START_NS, instruction=""))


def test_the_replay_of_a_model_finds_no_error_in_the_recording_itself() -> None:
    from openvla_ros.evaluation.replay.episode_answers import answer_episode

    episode = episode_of(octo_actions()[2])
    record = answer_episode(RecordedPolicy([episode], SPEC, STATS, TOKENIZER), episode, STATS)
    np.testing.assert_array_equal(record.predicted, record.recorded)
    np.testing.assert_array_equal(record.stamps_ns, episode.stamps_ns)
    assert record.is_valid.all()
