"""The properties of motion hold for our implementation, and catch every mutant of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from motion_properties import CASES, PROPERTIES

from openvla_ros.control import displacement, gripper, motion, safety
from openvla_ros.control.pose import EndEffectorPose, Pose, integrate_twist
from openvla_ros.control.safety import SafetyFilter
from openvla_ros.control.slew import SlewLimiter, SpeedLimits
from openvla_ros.control.target import TargetPose
from openvla_ros.control.twist import TwistStreamer
from openvla_ros.control.workspace import Workspace


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_property_holds(name: str) -> None:
    PROPERTIES[name]()


def test_at_least_ten_thousand_random_cases_are_tried() -> None:
    assert sum(CASES.values()) >= 10_000


# Mutants: each is a mistake that somebody has made, or nearly -------------------------------------

Patch = pytest.MonkeyPatch


def publishes_the_step_itself(patch: Patch) -> None:
    """No division by the step time: the classic mistake, five times too slow at 5 Hz."""
    patch.setattr(TwistStreamer, "_first_step_s", lambda _self: 1.0)


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


def drops_what_the_limits_held_back(patch: Patch) -> None:
    """Every action that is a little too fast, or answered a little early, loses its end."""
    patch.setattr(TwistStreamer, "_overdue", lambda _self, _now_s: np.zeros(6))


def makes_good_twice_what_was_held_back(patch: Patch) -> None:
    """Moves further than all displacements together."""
    overdue = TwistStreamer._overdue
    patch.setattr(TwistStreamer, "_overdue", lambda self, now_s: 2.0 * overdue(self, now_s))


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
        self: SafetyFilter, twist: np.ndarray, now_s: float, ee_pose: EndEffectorPose | None = None
    ) -> np.ndarray:
        if not np.isfinite(twist).all():
            twist = self._slew.twist
        return apply(self, twist, now_s, ee_pose)

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


MUTANTS: list[tuple[Callable[[Patch], None], str]] = [
    (publishes_the_step_itself, "an_action_takes_the_time_of_its_step"),
    (repeats_the_last_action, "an_action_moves_no_further_than_its_displacement"),
    (repeats_the_last_action, "every_stop_is_zero_in_time"),
    (turns_in_the_wrong_order, "rotation_and_translation_compose_on_the_side_of_the_spec"),
    (takes_tool_axes_for_base_axes, "rotation_and_translation_compose_on_the_side_of_the_spec"),
    (keeps_the_axes_of_the_first_step, "a_chunk_in_tool_axes_turns_with_the_tool"),
    (inverts_the_gripper, "the_gripper_does_what_the_dataset_means"),
    (accelerates_without_limit, "no_limit_is_ever_exceeded"),
    (clips_every_axis_by_itself, "an_action_from_rest_keeps_its_direction"),
    (limits_every_axis_instead_of_the_norm, "no_limit_is_ever_exceeded"),
    (limits_every_axis_instead_of_the_norm, "an_action_moves_no_further_than_its_displacement"),
    (drops_what_the_limits_held_back, "a_sequence_arrives_where_its_displacements_add_up_to"),
    (makes_good_twice_what_was_held_back, "a_sequence_arrives_where_its_displacements_add_up_to"),
    (ramps_for_ever, "every_stop_is_zero_in_time"),
    (cuts_nothing, "every_stop_is_zero_in_time"),
    (passes_nan_as_zero_later, "every_stop_is_zero_in_time"),
    (believes_an_old_pose, "every_stop_is_zero_in_time"),
    (knows_no_box, "the_end_effector_stays_in_its_box"),
    (stops_every_axis_in_the_margin, "the_end_effector_stays_in_its_box"),
    (adds_steps_to_the_measured_pose, "the_target_follows_the_twist_on_a_leash"),
    (forgets_the_leash, "the_target_follows_the_twist_on_a_leash"),
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
