"""The whole audit on real episodes: clean ones raise no problem, each planted fault is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from audit_faults import FAULTS, RATE_HZ, make_episode, octo_episodes, planted
from bridge_episodes import WHY_NOT, bridge_stats, has_recordings

from openvla_ros.action_specs import load_action_spec
from openvla_ros.data.episode import Episode
from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.evaluation.audit.audit_report import NO_EEF, AuditReport, audit_episodes
from openvla_ros.evaluation.replay.folder import plain
from openvla_ros.types import ActionSpec, Finding

KEY = "bridge_orig"
SPEC = load_action_spec(KEY)
needs_recordings = pytest.mark.skipif(not has_recordings(), reason=WHY_NOT)

#: True of the clean episodes as well: they are 25 heads that begin before the first command.
ALWAYS = {"idle start", "demonstrations"}
#: Fault to what must be found: item to level, and words that name the fault. Nothing else may be.
EXPECTED: dict[str, dict[str, tuple[str, str]]] = {
    "actions ×5": {
        "translation scale": ("warn", "about 5"),
        "rotation scale": ("problem", "about 5"),
        "outside q01–q99": ("problem", "Δz 50 %"),
        "translation gain": ("problem", "about 5"),
        "rotation gain": ("problem", "about 5"),
    },
    "actions ÷10": {
        "idle share": ("problem", "84 %"),
        "longest pause": ("warn", "2.0 s"),
        "translation scale": ("problem", "about 1/10"),
        "rotation scale": ("problem", "about 1/10"),
        "translation gain": ("problem", "about 1/10"),
        "rotation gain": ("problem", "about 1/10"),
    },
    "translation in mm": {
        "translation scale": ("problem", "about 1000: mm instead of m"),
        "outside q01–q99": ("problem", "Δx 90 %"),
        "translation gain": ("problem", "about 1000: mm instead of m"),
    },
    "rotation in degrees": {
        "rotation scale": ("problem", "degrees instead of radians"),
        "outside q01–q99": ("problem", "Δroll 87 %"),
        "rotation gain": ("problem", "degrees instead of radians"),
    },
    "actions one step late": {
        "action lag": ("problem", "-0.6 steps"),
        "steps without action": ("warn", "25 of 250"),
    },
    "actions one step early": {
        "action lag": ("warn", "+1.6 steps"),
        "steps without action": ("warn", "25 of 250"),
    },
    "y inverted": {"inverted axis": ("problem", "y of the action runs backwards")},
    "yaw inverted": {"inverted axis": ("problem", "yaw of the action runs backwards")},
    "frame turned by 90°": {"frame": ("problem", "x is y of the state, y is -x of the state")},
    "poses instead of steps": {
        "absolute actions": ("problem", "equal the poses"),
        "translation scale": ("warn", ""),
        "rotation scale": ("problem", ""),
        "outside q01–q99": ("problem", "Δx 100 %"),
    },
    "gripper inverted": {"gripper polarity": ("problem", "0 % of 25 episodes begin open")},
    "gripper -1 … 1": {"gripper range": ("problem", "-1 … 1")},
    "gripper in metres": {
        "gripper range": ("problem", "0 … 0.08"),
        "gripper polarity": ("warn", ""),
        "gripper events": ("warn", "0 × close, 0 × open"),
    },
    "frozen camera": {"frozen camera": ("problem", "25 of 25 episodes")},
    "BGR": {"colour order": ("warn", "10 % of the coloured pixels are warm")},
    "30 % idle": {"idle share": ("warn", "40 %")},  # with the step at the start of each
    "jittered stamps": {"jitter": ("warn", "46 % of a period")},
}


def audited(episodes: list[Episode] | tuple[Episode, ...]) -> AuditReport:
    return audit_episodes(episodes, SPEC, {KEY: bridge_stats()}, KEY)


def raised(report: AuditReport) -> dict[str, Finding]:
    return {finding.item: finding for finding in report.findings if finding.level != "ok"}


@needs_recordings
@pytest.mark.parametrize("camera", [0, 1, 2])
def test_real_episodes_raise_no_problem(camera: int) -> None:
    report = audited(octo_episodes(camera))
    assert not report.has_problems
    assert set(raised(report)) == ALWAYS, raised(report)
    assert not [finding for finding in report.findings if finding.value.startswith("n/a")]
    assert (len(report.episodes), report.steps) == (25, 250)


@needs_recordings
@pytest.mark.parametrize("camera", [0, 1, 2])
def test_any_three_real_episodes_raise_no_problem(camera: int) -> None:
    """A first bag of a new robot is short: its audit must not cry wolf."""
    rng = np.random.default_rng(camera)
    for _ in range(4):
        chosen = rng.choice(25, 3, replace=False)
        report = audited([octo_episodes(camera)[i] for i in chosen])
        assert not report.has_problems, (chosen, raised(report))


@needs_recordings
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_named_and_nothing_else(fault: str) -> None:
    found = raised(audited(planted(fault)))
    expected = EXPECTED[fault]
    assert set(found) - ALWAYS == set(expected), {k: v.value for k, v in found.items()}
    for item, (level, words) in expected.items():
        assert (found[item].level, words in found[item].value) == (level, True), found[item]
        assert found[item].reason, "a finding says what to do"


@needs_recordings
@pytest.mark.parametrize("camera", [1, 2])
def test_swapped_channels_are_hinted_at_for_every_camera(camera: int) -> None:
    assert raised(audited(planted("BGR", camera)))["colour order"].level == "warn"


@needs_recordings
def test_direction_of_a_shift_is_named() -> None:
    late = raised(audited(planted("actions one step late")))["action lag"]
    early = raised(audited(planted("actions one step early")))["action lag"]
    assert "shifted by one step (stored too late)" in late.reason
    assert "shifted by one step (stored too early)" in early.reason


@needs_recordings
def test_report_is_json_and_counts_what_it_read() -> None:
    heard: list[str] = []
    episodes = octo_episodes()
    report = audit_episodes(episodes, SPEC, {KEY: bridge_stats()}, KEY, on_episode=heard.append)
    content = json.loads(json.dumps(plain(report.to_dict()), allow_nan=False))
    assert heard == [row["episode"] for row in content["per_episode"]]
    assert (content["format"], content["usable"], content["unnorm_key"]) == (1, True, KEY)
    assert (content["episodes"], content["steps"]) == (25, 250)
    assert sum(row["gripper_events"] for row in content["per_episode"]) == 19
    assert content["measured"]["idle"]["share"] == pytest.approx(26 / 250)


def moving_episode(name: str = "a", steps: int = 40, actions: int = 7) -> Episode:
    rng = np.random.default_rng(len(name))
    frames = rng.integers(0, 255, (steps, 8, 8, 3), dtype=np.uint8)
    return make_episode(name, rng.normal(0, 0.02, (steps, actions)), frames)


def test_without_key_and_statistics_checks_say_what_they_need() -> None:
    report = audit_episodes([moving_episode()], ActionSpec(""), {}, None)
    needs = {f.item: f.reason for f in report.findings if f.value == "n/a"}
    assert "--unnorm-key" in needs["idle share"]
    assert "--unnorm-key" in needs["gripper polarity"]
    assert "--checkpoint" in needs["action scale"]
    assert "state in the topic file" in needs["states follow actions"]
    assert report.measured["idle"] is report.measured["scale"] is None
    assert not report.has_problems


def test_other_layouts_are_audited_without_the_checks_of_the_gripper() -> None:
    states = np.zeros((40, 7))
    report = audit_episodes([replace(moving_episode(actions=8), states=states)], SPEC, {}, None)
    reasons = {f.reason for f in report.findings if f.value == "n/a" and f.item != "action scale"}
    assert reasons == {NO_EEF}, "neither a key nor a state is what is missing"
    assert {f.item for f in report.findings if f.value == "n/a"} == {
        "idle share",
        "gripper polarity",
        "action scale",
        "states follow actions",
    }


def test_frames_are_read_once_and_let_go() -> None:
    """A camera that reuses its buffer must not look frozen, and nothing keeps its frames."""
    buffer, reads = np.zeros((8, 8, 3), np.uint8), []

    def frames():
        reads.append(1)
        for step in range(40):
            buffer[:] = step
            yield buffer

    report = audit_episodes([replace(moving_episode(), open_images=frames)], SPEC, {}, None)
    assert reads == [1]
    assert report.episodes[0].repeated_frames == 0
    assert len(report.samples) == 1 and not report.samples[0][1].any()


def test_no_episodes_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no episode"):
        audited([])


def test_mixed_actions_are_an_error_that_names_them() -> None:
    with pytest.raises(ConfigurationError, match=r"7 \(a\), 8 \(b\)"):
        audit_episodes([moving_episode("a"), moving_episode("b", actions=8)], SPEC, {}, None)


def test_key_of_another_length_is_an_error_before_frames_are_read() -> None:
    """The frames of an hour were decoded first."""

    def frames():
        raise AssertionError("a frame was read")

    with pytest.raises(ActionStatsError, match=r"8 numbers.*'bridge_orig' has 7"):
        audited([replace(moving_episode(actions=8), open_images=frames)])


def test_one_step_episodes_are_audited() -> None:
    report = audited([moving_episode("a" * (i + 1), steps=1) for i in range(3)])
    assert report.steps == 3
    assert not {"rate", "jitter"} & set(raised(report))
    assert RATE_HZ == 5.0
