"""A fault is named when the data show it; a policy that answers badly is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from synthetic_records import SPEC, STATS, TOKENIZER, record

from openvla_ros.evaluation.diagnosis.diagnosis import diagnose
from openvla_ros.evaluation.diagnosis.evidence import MOST_PARTS, steps_of
from openvla_ros.evaluation.diagnosis.probes import (
    AS_IS,
    BGR,
    BLACK,
    MIRRORED,
    NOISE,
    PROBES,
    SWAPPED,
    UPSIDE_DOWN,
    ProbeResult,
)
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.model.action_stats import ActionStats, normalize, unnormalize
from openvla_ros.types import Finding

KEY = "bridge_orig"
_FACTORS = np.array([7.1, 3.6, 6.8, 5.8, 4.5, 2.15, 1.0])
#: A key whose motion is several times larger, by another factor on each axis.
LARGE = ActionStats("large", _FACTORS * STATS.q01, _FACTORS * STATS.q99, STATS.mask, "test")
HALF = ActionStats("half", 0.5 * STATS.q01, 0.5 * STATS.q99, STATS.mask, "test")
NORM_STATS = {KEY: STATS, "large": LARGE, "half": HALF}
#: Correlation with the recordings of a policy that has learnt them, a useful one, and noise.
LEARNT, USEFUL, NONE = 0.95, 0.7, 0.0


def motions(episodes: int = 12, steps: int = 10, *, seed: int = 0) -> list[np.ndarray]:
    """Return (T, 7) actions that resemble the ones before, with a gripper that closes once."""
    random = np.random.default_rng(seed)
    size = 0.15 * (STATS.q99 - STATS.q01)[:6]
    found = []
    for _ in range(episodes):
        motion = random.normal(size=(steps, 6))
        for step in range(1, steps):
            motion[step] = 0.6 * motion[step - 1] + 0.8 * motion[step]
        is_open = np.arange(steps) < random.integers(steps // 3, steps)
        found.append(np.column_stack([size * motion, is_open]))
    return found


def answers(
    recorded: Sequence[np.ndarray], correlation: float, *, size: float = 1.0, seed: int = 1
) -> list[np.ndarray]:
    """Return (T, 7) ids of a policy that follows the recordings so closely."""
    random = np.random.default_rng(seed)
    spread = np.concatenate(recorded)[:, :6].std(axis=0)
    found = []
    for actions in recorded:
        noise = np.sqrt(1.0 - correlation**2) * spread * random.normal(size=(len(actions), 6))
        errs = random.random(len(actions)) > 0.5 + 0.45 * correlation
        gripper = np.where(errs, 1.0 - actions[:, 6], actions[:, 6])
        motion = size * (correlation * actions[:, :6] + noise)
        found.append(TOKENIZER.encode(normalize(np.column_stack([motion, gripper]), STATS)))
    return found


def records(
    recorded: Sequence[np.ndarray], ids: Sequence[np.ndarray], key: str = KEY
) -> list[EpisodeRecord]:
    return [
        record(f"episode_{i:03d}", actions, found, stats=NORM_STATS[key])
        for i, (actions, found) in enumerate(zip(recorded, ids, strict=True))
    ]


def findings(
    given: Sequence[EpisodeRecord], key: str = KEY, probes: ProbeResult | None = None
) -> list[Finding]:
    return diagnose(given, probes, SPEC, NORM_STATS, key, TOKENIZER)


def problems(found: Sequence[Finding]) -> list[str]:
    return [finding.item for finding in found if finding.level == "problem"]


def the(found: Sequence[Finding], item: str) -> Finding:
    return next(finding for finding in found if finding.item == item)


def late(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(actions[:1], np.nan), actions[:-1]])


def early(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([actions[1:], np.full_like(actions[:1], np.nan)])


def five_times(actions: np.ndarray) -> np.ndarray:
    return actions * np.array([5.0] * 6 + [1.0])


def inverted(actions: np.ndarray) -> np.ndarray:
    return np.column_stack([actions[:, :6], 1.0 - actions[:, 6]])


PLANTED: list[tuple[Callable[[np.ndarray], np.ndarray], list[str], str]] = [
    (late, ["time shift"], "recorded 1 step later"),
    (early, ["time shift"], "recorded 1 step earlier"),
    (five_times, ["action scale"], "translation"),
    (inverted, ["gripper polarity"], "inverted"),
    (lambda a: five_times(late(a)), ["time shift", "action scale"], "1 step later"),
    (lambda a: inverted(five_times(a)), ["action scale", "gripper polarity"], "translation"),
]


@pytest.mark.parametrize("correlation", [LEARNT, USEFUL])
@pytest.mark.parametrize(("fault", "items", "words"), PLANTED)
def test_a_planted_fault_is_named_and_nothing_else(
    fault: Callable, items: list[str], words: str, correlation: float
) -> None:
    sound = motions()
    found = findings(records([fault(a) for a in sound], answers(sound, correlation)))
    assert problems(found) == items
    assert words in the(found, items[0]).value


@pytest.mark.parametrize("correlation", [LEARNT, USEFUL, 0.4, NONE])
@pytest.mark.parametrize("size", [0.6, 1.0, 1.5])
def test_sound_data_raise_no_problem_however_well_the_policy_answers(
    correlation: float, size: float
) -> None:
    sound = motions()
    found = findings(records(sound, answers(sound, correlation, size=size)))
    assert not problems(found), [f for f in found if f.level == "problem"]


@pytest.mark.parametrize("correlation", [LEARNT, USEFUL, 0.5])
def test_the_right_statistics_are_named_with_the_factor(correlation: float) -> None:
    sound = motions()
    found = findings(records(sound, answers(sound, correlation), "large"), "large")
    assert problems(found) == ["statistics key"]
    finding = the(found, "statistics key")
    assert "'bridge_orig'" in finding.value and "'large'" in finding.value
    assert "times too large in translation" in finding.reason
    assert "explained" in the(found, "action scale").value


def test_a_scale_of_five_is_measured() -> None:
    sound = motions()
    found = findings(records([five_times(a) for a in sound], answers(sound, LEARNT)))
    factors = re.findall(r"(?:translation|rotation) (\S+) ×", the(found, "action scale").value)
    assert [float(factor) for factor in factors] == pytest.approx([5.0, 5.0], abs=0.3)


def test_a_policy_that_follows_nothing_gives_no_verdict_but_a_warning() -> None:
    """Three unlike faults at once: its answers are as bad without them."""
    sound = motions()
    broken = [five_times(late(a)) for a in sound]
    for recorded in (sound, broken):
        found = findings(records(recorded, answers(sound, NONE)))
        for item in ("time shift", "statistics key", "action scale"):
            assert the(found, item).value == "cannot be judged"
            assert "does not follow" in the(found, item).reason
        assert the(found, "trivial answers").level == "warn"


def test_a_policy_that_follows_beats_trivial_answers() -> None:
    sound = motions()
    found = [f for f in findings(records(sound, answers(sound, LEARNT))) if "trivial" in f.item]
    assert len(found) == 2 and {f.level for f in found} == {"ok"}
    assert "the mean action" in found[0].value and "the action before" in found[1].value


@pytest.mark.parametrize(("episodes", "steps", "words"), [(3, 10, "30 rec"), (2, 25, "2 episodes")])
def test_too_little_data_say_what_is_missing(episodes: int, steps: int, words: str) -> None:
    sound = motions(episodes, steps)
    found = findings(records([five_times(a) for a in sound], answers(sound, LEARNT)))
    assert not problems(found)
    assert words in the(found, "action scale").reason
    assert the(found, "trivial answers").value == "cannot be judged"


def test_one_long_episode_is_enough() -> None:
    sound = motions(1, 250)
    assert problems(findings(records([five_times(sound[0])], answers(sound, USEFUL)))) == [
        "action scale"
    ]


def test_a_gripper_that_stays_is_not_judged() -> None:
    sound = motions()
    for actions in sound:
        actions[:, 6] = 1.0
    found = findings(records(sound, answers(sound, LEARNT)))
    assert "never moves" in the(found, "gripper polarity").reason


def test_a_gripper_in_millimetres_is_understood() -> None:
    sound = motions()
    millimetres = [a * np.array([1.0] * 6 + [80.0]) for a in sound]
    assert not problems(findings(records(millimetres, answers(sound, LEARNT))))
    upside_down = [inverted(a) * np.array([1.0] * 6 + [80.0]) for a in sound]
    found = findings(records(upside_down, answers(sound, LEARNT)))
    assert problems(found) == ["gripper polarity"]


def test_answers_that_are_no_action_do_not_count() -> None:
    sound = motions()
    given = records(sound, answers(sound, LEARNT))
    broken = []
    for one in given:
        predicted, is_valid = one.predicted.copy(), one.is_valid.copy()
        predicted[::3], is_valid[::3] = 1000.0, False
        broken.append(replace(one, predicted=predicted, is_valid=is_valid))
    assert not problems(findings(broken))


def test_axes_that_never_move_are_left_out() -> None:
    sound = motions()
    for actions in sound:
        actions[:, 3:6] = 0.0
    ids = answers(sound, LEARNT)
    assert not problems(findings(records(sound, ids)))
    found = findings(records([five_times(a) for a in sound], ids))
    assert problems(found) == ["action scale"]


def test_actions_of_another_length_are_not_judged() -> None:
    short = [record("a", np.zeros((50, 3)), np.full((50, 3), 31900), stats=_first(3))]
    found = diagnose(short, None, SPEC, {KEY: _first(3)}, KEY, TOKENIZER)
    assert "3 numbers" in the(found, "motion").reason


def _first(count: int) -> ActionStats:
    return ActionStats(KEY, STATS.q01[:count], STATS.q99[:count], STATS.mask[:count], "test")


def probes(right: str | None, *, correlation: float = LEARNT, frames: int = 5) -> ProbeResult:
    """Return answers that follow the recordings under one probe, and elsewhere nothing.

    A policy that sees and hears, if `right` is None one that knows nothing of these scenes.
    """
    recorded = motions(12, frames, seed=7)
    ids = {
        name: np.concatenate(answers(recorded, correlation if name == right else NONE, seed=i))
        for i, name in enumerate(PROBES)
    }
    count = 12 * frames
    normalized = {name: TOKENIZER.decode(found) for name, found in ids.items()}
    return ProbeResult(
        episodes=tuple(f"episode_{i:03d}" for i in np.arange(count) // frames),
        sources=("a bag",) * count,
        steps=np.arange(count) % frames,
        instructions=("close the door",) * count,
        swapped_instructions=("open the drawer",) * count,
        swapped_by="another instruction of these episodes",
        recorded=np.concatenate(recorded),
        token_ids=ids,
        predicted={name: unnormalize(found, STATS) for name, found in normalized.items()},
        normalized=normalized,
        is_valid={name: np.ones(count, bool) for name in PROBES},
    )


def alike(given: ProbeResult, *names: str, except_frames: int = 0) -> ProbeResult:
    """Return the probes with the answers as they are under some of them, too."""
    ids = dict(given.token_ids)
    for name in names:
        ids[name] = ids[AS_IS].copy()
        ids[name][:except_frames] -= 1
    return replace(given, token_ids=ids)


def bad_records() -> list[EpisodeRecord]:
    """Return what a policy answers to a picture it does not know."""
    sound = motions()
    return records(sound, answers(sound, NONE))


@pytest.mark.parametrize(
    ("probe", "item", "words"),
    [
        (BGR, "colour order", "BGR"),
        (MIRRORED, "mirrored picture", "mirrored"),
        (UPSIDE_DOWN, "upside-down picture", "upside down"),
    ],
)
def test_a_wrong_picture_is_named(probe: str, item: str, words: str) -> None:
    found = findings(bad_records(), probes=probes(probe))
    assert problems(found) == [item]
    assert words in the(found, item).value
    assert the(found, "time shift").reason == "correct the picture first"


def test_a_wrong_key_behind_a_wrong_picture_is_named_too() -> None:
    given = probes(BGR)
    predicted = {name: unnormalize(n, LARGE) for name, n in given.normalized.items()}
    found = findings(bad_records(), "large", replace(given, predicted=predicted))
    assert problems(found) == ["colour order", "statistics key"]


@pytest.mark.parametrize("right", [AS_IS, None])
def test_a_right_picture_and_one_the_policy_does_not_know_raise_nothing(right: str | None) -> None:
    given = probes(right)
    found = findings(bad_records(), probes=given)
    assert not problems(found)
    assert the(found, "sight").level == the(found, "hearing").level == "ok"


def test_a_policy_that_answers_black_and_noise_alike_is_blind() -> None:
    blind = alike(probes(None), BLACK, NOISE)
    found = findings(bad_records(), probes=blind)
    assert problems(found) == ["sight"]
    assert "blind" in the(found, "sight").value


def test_frames_that_are_answered_like_black_ones_are_a_warning() -> None:
    found = findings(bad_records(), probes=alike(probes(None), BLACK))
    assert not problems(found)
    assert the(found, "sight").level == "warn"


def test_a_policy_that_ignores_every_instruction_is_deaf_and_one_that_hears_at_times_is_not() -> (
    None
):
    found = findings(bad_records(), probes=alike(probes(None), SWAPPED))
    assert problems(found) == ["hearing"]
    assert "one task" in the(found, "hearing").reason
    at_times = alike(probes(None), SWAPPED, except_frames=2)
    assert not problems(findings(bad_records(), probes=at_times))


def test_few_probes_give_no_verdict() -> None:
    given = alike(probes(None, frames=1), BLACK, NOISE, SWAPPED)
    keep = {f: getattr(given, f) for f in ("token_ids", "predicted", "normalized", "is_valid")}
    few = replace(
        given,
        episodes=given.episodes[:9],
        sources=given.sources[:9],
        steps=given.steps[:9],
        recorded=given.recorded[:9],
        **{f: {name: a[:9] for name, a in by.items()} for f, by in keep.items()},
    )
    found = findings(bad_records(), probes=few)
    assert not problems(found)
    assert the(found, "sight").value == the(found, "hearing").value == "cannot be judged"


def test_the_same_seed_gives_the_same_findings() -> None:
    given = bad_records()
    assert findings(given, probes=probes(BGR)) == findings(given, probes=probes(BGR))


def test_thousands_of_episodes_are_drawn_in_at_most_so_many_parts() -> None:
    sound = motions(1000, 5)
    steps = steps_of(records(sound, answers(sound, USEFUL)), TOKENIZER)
    parts = steps.parts
    assert len(np.unique(parts)) <= MOST_PARTS and (np.diff(parts) >= 0).all()
    assert (np.diff(parts)[np.diff(steps.episode) == 0] == 0).all(), "an episode is torn apart"


@pytest.mark.filterwarnings("error")
def test_episodes_of_one_step_are_judged_but_for_what_needs_a_sequence() -> None:
    sound = motions(100, 1)
    found = findings(records([five_times(a) for a in sound], answers(sound, LEARNT)))
    assert problems(found) == ["action scale"]
    assert not problems(findings(records(sound, answers(sound, LEARNT))))


@pytest.mark.filterwarnings("error")
def test_recordings_without_actions_give_no_verdict() -> None:
    sound = motions()
    nothing = [np.full_like(actions, np.nan) for actions in sound]
    given = replace(probes(None), recorded=np.full((60, 7), np.nan))
    found = findings(records(nothing, answers(sound, LEARNT)), probes=given)
    assert not problems(found)
    judged = {finding.item for finding in found if finding.value != "cannot be judged"}
    assert judged == {"sight", "hearing"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("fault", "items"), [(late, ["time shift"]), (five_times, ["action scale"])]
)
def test_the_motion_of_a_twist_topic_is_judged_without_a_gripper(fault, items: list[str]) -> None:
    """A recording without gripper had "0 recorded and answered steps", and no verdict at all."""
    sound = motions(12, 25)
    for change, expected in ((fault, items), (np.copy, [])):
        twists = [change(actions) for actions in sound]
        for actions in twists:
            actions[:, 6] = np.nan
        found = findings(records(twists, answers(sound, LEARNT)))
        assert problems(found) == expected
        assert the(found, "gripper polarity").reason == "no gripper was recorded"
    assert the(found, "trivial answers").value != "cannot be judged"
