"""The properties of motion hold for our implementation, and catch every mutant of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import frame_properties
import motion_properties
import numpy as np
import pytest
from motion_cases import CASES, PROPERTIES, TICK_S

from openvla_ros.control import displacement, gripper, motion, safety
from openvla_ros.control.pose import EndEffectorPose, Pose, integrate_twist
from openvla_ros.control.safety import SafetyFilter
from openvla_ros.control.slew import SlewLimiter, SpeedLimits
from openvla_ros.control.target import TargetPose
from openvla_ros.control.twist import TwistStreamer, _Path
from openvla_ros.control.workspace import Workspace


def test_every_property_is_registered() -> None:
    """Importing the modules does it; without this, nobody would miss them."""
    for module in (motion_properties, frame_properties):
        assert any(hasattr(module, name) for name in PROPERTIES)
    assert {name for _, name in MUTANTS} == set(PROPERTIES), "each has a mutant that it catches"


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_property_holds(name: str) -> None:
    PROPERTIES[name]()


def test_at_least_ten_thousand_random_cases_are_tried() -> None:
    assert sum(CASES.values()) >= 10_000


# Mutants: each is a mistake that somebody has made, or nearly -------------------------------------

Patch = pytest.MonkeyPatch


def publishes_the_step_itself(patch: Patch) -> None:
    """No division by the step time: the classic mistake, five times too slow at 5 Hz."""
    accept = TwistStreamer.accept
    patch.setattr(
        TwistStreamer, "accept", lambda self, steps, _step_s, now_s: accept(self, steps, 1.0, now_s)
    )


def repeats_the_last_action(patch: Patch) -> None:
    """Publishes for ever what it published last."""
    sample = TwistStreamer.sample
    last = np.zeros(6)

    def repeat(self: TwistStreamer, now_s: float) -> np.ndarray:
        twist = sample(self, now_s)
        if twist.any():
            last[:] = twist
        return last.copy()

    patch.setattr(TwistStreamer, "sample", repeat)


def carries_a_whole_action_over(patch: Patch) -> None:
    """Adds what is left of an old action to the new one, however much it is."""
    patch.setattr("openvla_ros.control.twist._CARRIED_TICKS", 1e9)


def turns_in_the_wrong_order(patch: Patch) -> None:
    """Rx Ry Rz: the same three angles, multiplied from the other side."""

    def other_side(rpy: np.ndarray) -> np.ndarray:
        return displacement.exponential_map(np.array([rpy[0], 0.0, 0.0])) @ (
            displacement.exponential_map(np.array([0.0, rpy[1], 0.0]))
            @ displacement.exponential_map(np.array([0.0, 0.0, rpy[2]]))
        )

    patch.setattr(displacement, "euler_matrix", other_side)


def takes_tool_axes_for_base_axes(patch: Patch) -> None:
    """A rotation that is multiplied from the right is published as if from the left."""
    original = displacement._in_base_axes

    def ignore(moves, spec, turn, ee_rotation, scales):  # type: ignore[no-untyped-def]
        return original(moves, spec, turn, np.eye(3), scales)

    patch.setattr(displacement, "_in_base_axes", ignore)


def keeps_the_axes_of_the_first_step(patch: Patch) -> None:
    """A chunk in tool axes whose later steps do not turn with the tool."""
    patch.setattr(displacement, "exponential_map", lambda _vector: np.eye(3))


def inverts_the_gripper(patch: Patch) -> None:
    """1 means open in BridgeData and closed in robosuite."""
    patch.setattr(motion, "opening", lambda value, spec: 1.0 - gripper.opening(value, spec))


def accelerates_without_limit(patch: Patch) -> None:
    """Publishes the stream as it is."""
    patch.setattr(SlewLimiter, "follow", lambda _self, wanted, _now_s, _blocked: (wanted, False))


def clips_every_axis_by_itself(patch: Patch) -> None:
    """A speed limit per axis bends the path."""

    def clip(self: SpeedLimits, twist: np.ndarray) -> tuple[np.ndarray, bool]:
        bound = np.repeat([self.linear_m_s, self.angular_rad_s], 3) / np.sqrt(3.0)
        return np.clip(twist, -bound, bound), False

    patch.setattr(SpeedLimits, "capped", clip)
    patch.setattr(SpeedLimits, "shortest_time_s", lambda _self, _step: 0.0)


def limits_every_axis_instead_of_the_norm(patch: Patch) -> None:
    """0.25 m/s along each of three axes is 0.43 m/s."""

    def slowest_axis(self: SpeedLimits, step: np.ndarray) -> float:
        axes = np.abs(step) / np.repeat([self.linear_m_s, self.angular_rad_s], 3)
        return float(axes.max())

    patch.setattr(SpeedLimits, "shortest_time_s", slowest_axis)


def adds_the_rest_of_the_last_action(patch: Patch) -> None:
    """The policy has seen where the arm was, and has answered to that already."""
    begin = TwistStreamer._begin

    def add(self: TwistStreamer, steps: np.ndarray, step_s: float) -> None:
        steps = steps.copy()
        if self._path is not None:
            steps[0] += self._path.at(1e9) - self._reached
        begin(self, steps, step_s)

    patch.setattr(TwistStreamer, "_begin", add)


def holds_twice_as_long(patch: Patch) -> None:
    """Velocity of the last step for longer than hold_max."""
    begin = TwistStreamer._begin

    def hold(self: TwistStreamer, steps: np.ndarray, step_s: float) -> None:
        settings = self.settings
        self.settings = dataclasses.replace(settings, hold_max_s=2.0 * settings.hold_max_s)
        begin(self, steps, step_s)
        self.settings = settings

    patch.setattr(TwistStreamer, "_begin", hold)


def gives_every_step_whole_ticks(patch: Patch) -> None:
    """A step of 33 ms in one tick of 20 ms: a chunk at 30 Hz was 67 % too fast."""
    init = _Path.__init__

    def rounded(self: _Path, steps: np.ndarray, durations_s: list[float]) -> None:
        init(self, steps, [max(np.floor(d / TICK_S), 1.0) * TICK_S for d in durations_s])

    patch.setattr(_Path, "__init__", rounded)


def ignores_that_ticks_come_early(patch: Patch) -> None:
    """Counts ticks instead of time."""
    advance = TwistStreamer._advance

    def count(self: TwistStreamer, now_s: float) -> None:
        if self._last_tick_s is not None:
            self._last_tick_s = now_s - TICK_S
        advance(self, now_s)
        self._last_tick_s = now_s

    patch.setattr(TwistStreamer, "_advance", count)


def loses_what_acceleration_holds_back(patch: Patch) -> None:
    """A rate limiter without memory: a quarter of a short step is gone."""
    patch.setattr(SlewLimiter, "follow", SlewLimiter.steer)


def makes_good_what_a_person_did_not_steer(patch: Patch) -> None:
    """Drives back after the person has let go."""
    patch.setattr(SlewLimiter, "steer", SlewLimiter.follow)


def buys_a_larger_step_with_a_late_tick(patch: Patch) -> None:
    """The time that a tick is late is taken for time to accelerate."""
    approach = SlewLimiter._approach

    def late(self: SlewLimiter, aim: np.ndarray, elapsed_s: float) -> bool:
        tick_s, self.tick_s = self.tick_s, max(elapsed_s, self.tick_s)
        is_limited = approach(self, aim, elapsed_s)
        self.tick_s = tick_s
        return is_limited

    patch.setattr(SlewLimiter, "_approach", late)


def clips_no_step(patch: Patch) -> None:
    """What the network answers is executed however large it is."""
    patch.setattr(displacement.np, "clip", lambda values, _low, _high: values)


def ramps_for_ever(patch: Patch) -> None:
    """A stop that only stops the stream: the arm still makes good what it owes."""
    patch.setattr(SafetyFilter, "_faded", lambda _self, twist, _now_s: twist)
    patch.setattr(TwistStreamer, "fade", lambda _self, _now_s: None)


def cuts_nothing(patch: Patch) -> None:
    """`~/stop` that lets the filter go on."""
    patch.setattr(SafetyFilter, "cut", lambda _self: None)


def passes_nan_as_zero_later(patch: Patch) -> None:
    """A twist that is not finite is ignored, and the arm goes on with the last one."""
    apply = SafetyFilter.apply

    def ignore(
        self: SafetyFilter,
        twist: np.ndarray,
        now_s: float,
        ee_pose: EndEffectorPose | None = None,
        **how: bool,
    ) -> np.ndarray:
        if not np.isfinite(twist).all():
            twist = self._slew.twist
        return apply(self, twist, now_s, ee_pose, **how)

    patch.setattr(SafetyFilter, "apply", ignore)


def believes_an_old_pose(patch: Patch) -> None:
    """Moves in a box without knowing where the arm is."""
    for module in (safety, motion):
        patch.setattr(module, "pose_problem", lambda _pose: "")


def knows_no_box(patch: Patch) -> None:
    """The workspace is configured and not applied."""
    patch.setattr(Workspace, "outward", lambda *_: np.zeros(6, dtype=bool))


def stops_every_axis_in_the_margin(patch: Patch) -> None:
    """Far from every wall, and along them, nothing may be taken away."""
    patch.setattr(Workspace, "outward", lambda *_: np.ones(6, dtype=bool))


def adds_steps_to_the_measured_pose(patch: Patch) -> None:
    """An impedance controller then never gets where the policy wants it."""

    def follow(
        self: TargetPose, twist: np.ndarray, now_s: float, measured: Pose, box: object = None
    ) -> Pose:
        return integrate_twist(measured, twist[0:3], twist[3:6], 0.02)

    patch.setattr(TargetPose, "follow", follow)


def forgets_the_leash(patch: Patch) -> None:
    """An arm that is held back stores a leap."""
    patch.setattr("openvla_ros.control.target._pulled", lambda offset, _longest: (offset, False))


NO_FURTHER = "an_action_moves_no_further_than_its_displacement"
ENDS = "the_arm_ends_where_the_stream_has_put_it"
ADDS_UP = "a_sequence_arrives_where_its_displacements_add_up_to"
TIME = "an_action_takes_the_time_of_its_steps"
LIMITS = "no_limit_is_ever_exceeded"
DIRECTION = "an_action_from_rest_keeps_its_direction"
STEERED = "a_steered_arm_obeys_the_limits_and_stays_where_it_is_let_go"
STOP = "every_stop_is_zero_in_time"
SIDE = "rotation_and_translation_compose_on_the_side_of_the_spec"
CHUNK = "a_chunk_in_tool_axes_turns_with_the_tool"
BOX = "the_end_effector_stays_in_its_box"
GRIPPER = "the_gripper_does_what_the_dataset_means"
TARGET = "the_target_follows_the_twist_on_a_leash"

MUTANTS: list[tuple[Callable[[Patch], None], str]] = [
    (publishes_the_step_itself, TIME),
    (publishes_the_step_itself, ADDS_UP),
    (repeats_the_last_action, NO_FURTHER),
    (repeats_the_last_action, STOP),
    (turns_in_the_wrong_order, SIDE),
    (takes_tool_axes_for_base_axes, SIDE),
    (keeps_the_axes_of_the_first_step, CHUNK),
    (inverts_the_gripper, GRIPPER),
    (adds_the_rest_of_the_last_action, NO_FURTHER),
    (carries_a_whole_action_over, NO_FURTHER),
    (holds_twice_as_long, NO_FURTHER),
    (gives_every_step_whole_ticks, TIME),
    (ignores_that_ticks_come_early, NO_FURTHER),
    (accelerates_without_limit, LIMITS),
    (loses_what_acceleration_holds_back, ENDS),
    (loses_what_acceleration_holds_back, ADDS_UP),
    (makes_good_what_a_person_did_not_steer, STEERED),
    (buys_a_larger_step_with_a_late_tick, LIMITS),
    (clips_no_step, LIMITS),
    (clips_every_axis_by_itself, DIRECTION),
    (limits_every_axis_instead_of_the_norm, LIMITS),
    (limits_every_axis_instead_of_the_norm, NO_FURTHER),
    (ramps_for_ever, STOP),
    (cuts_nothing, STOP),
    (passes_nan_as_zero_later, STOP),
    (believes_an_old_pose, STOP),
    (knows_no_box, BOX),
    (stops_every_axis_in_the_margin, BOX),
    (adds_steps_to_the_measured_pose, TARGET),
    (forgets_the_leash, TARGET),
]


@pytest.mark.parametrize(
    ("mutant", "name"), MUTANTS, ids=[f"{mutant.__name__}-{name}" for mutant, name in MUTANTS]
)
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        PROPERTIES[name]()
