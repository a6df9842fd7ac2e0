"""The datasets of Open X-Embodiment as OpenVLA's action, against the reference's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openvla_ros.action_specs import load_action_spec
from openvla_ros.data.oxe_mixtures import MIXTURES, named_mixture
from openvla_ros.data.oxe_transforms import (
    DROID_Q01,
    DROID_Q99,
    TRANSFORMS,
    euler_from_quaternion,
    named_transform,
)
from openvla_ros.errors import ConfigurationError

GOLDENS = np.load(Path(__file__).parent / "reference/goldens/rlds_transforms.npz")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("bridge_orig", ("bridge_in_action", "bridge_in_state"), "bridge_out_action"),
        ("bridge_dataset", ("bridge_in_action", "bridge_in_state"), "bridge_out_action"),
        (
            "fractal20220817_data",
            ("rt1_in_world", "rt1_in_rot", "rt1_in_closedness"),
            "rt1_out_action",
        ),
        ("kuka", ("rt1_in_world", "rt1_in_rot", "rt1_in_closedness"), "rt1_out_action"),
        ("libero_spatial_no_noops", ("libero_in_action",), "libero_out_action"),
        ("droid_wipe", ("droid_in_vel", "droid_in_grip"), "droid_out_action"),
        ("droid", ("droid_in_vel", "droid_in_grip"), "droid_out_action"),
    ],
)
def test_actions_equal_the_reference_to_the_bit(
    name: str, given: tuple[str, ...], expected: str
) -> None:
    actions = TRANSFORMS[name].actions(*(GOLDENS[key] for key in given), where="the goldens")
    actions = actions[np.isfinite(actions).all(axis=1)]
    difference = np.abs(actions - GOLDENS[expected]).max()
    assert np.array_equal(actions, GOLDENS[expected]), f"off by up to {difference:.3g}"


def test_bridge_leaves_out_its_first_and_its_last_step() -> None:
    actions = TRANSFORMS["bridge_orig"].actions(
        GOLDENS["bridge_in_action"], GOLDENS["bridge_in_state"], where="the goldens"
    )
    assert np.flatnonzero(np.isnan(actions).any(axis=1)).tolist() == [0, len(actions) - 1]
    for steps in (1, 2):
        short = TRANSFORMS["bridge_orig"].actions(
            np.zeros((steps, 7)), np.zeros((steps, 7)), where="a short episode"
        )
        assert np.isnan(short).all()


def test_droid_leaves_out_steps_whose_arm_stands_still() -> None:
    """Still means: within 1e-5 of the normalised zero, in all six motions, at DROID's quantiles."""
    spread = (DROID_Q99 - DROID_Q01).astype(np.float64)
    velocity = np.zeros((4, 6))
    velocity[1] = 0.4e-5 * spread  # 0.8e-5 once normalised
    velocity[2, 4] = 0.6e-5 * spread[4]
    velocity[3, 0] = 0.5
    closing = np.array([[0.0], [1.0], [0.25], [1.0]])
    droid = TRANSFORMS["droid"]
    actions = droid.actions(velocity, closing, where="made")
    assert np.array_equal(actions[:, 6], np.float32([1.0, 0.0, 0.75, 0.0]))
    assert droid.is_idle is not None
    assert droid.is_idle(actions.astype(np.float64)).tolist() == [True, True, False, False]
    wipe = TRANSFORMS["droid_wipe"]
    assert np.array_equal(wipe.actions(velocity, closing, where="made"), actions)
    assert wipe.is_idle is None


def rotation(axis: int, angle: float) -> np.ndarray:
    """The matrix of a turn about one axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i], matrix[i, j] = np.sin(angle), -np.sin(angle)
    return matrix


def matrix_of(quaternion: np.ndarray) -> np.ndarray:
    """The matrix of x y z w, from the definition q v q*."""
    vector, w = quaternion[:3], quaternion[3]
    cross = np.array(
        [[0, -vector[2], vector[1]], [vector[2], 0, -vector[0]], [-vector[1], vector[0], 0]]
    )
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def test_angles_of_quaternions_make_the_same_rotation() -> None:
    quaternions = np.random.default_rng(0).normal(size=(200, 4))
    half = np.sqrt(0.5)
    locked = [[0, half, 0, half], [0, -half, 0, half], [0.5, 0.5, -0.5, 0.5], [0, 0, 0, 1]]
    quaternions = np.concatenate([quaternions, np.array(locked)])
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    worst = 0.0
    for q, (roll, pitch, yaw) in zip(quaternions, euler_from_quaternion(quaternions), strict=True):
        made = rotation(2, yaw) @ rotation(1, pitch) @ rotation(0, roll)
        worst = max(worst, float(np.abs(made - matrix_of(q)).max()))
    assert worst < 1e-6, f"off by up to {worst:.3g}"


def test_float32_in_float32_out() -> None:
    quaternions = np.float32([[0, 0, 0.6, 0.8]])
    angles = euler_from_quaternion(quaternions)
    assert angles.dtype == np.float32
    assert angles[0] == pytest.approx([0, 0, 2 * np.arcsin(0.6)], abs=1e-6)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'bridge' is unknown. Known: .*bridge_orig"):
        named_transform("bridge")


def test_another_width_than_the_datasets_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="action of 9 numbers give an action of 8, not 7"):
        TRANSFORMS["cmu_stretch"].actions(np.zeros((3, 9)), where="made")


def test_every_dataset_of_every_mixture_has_a_transform() -> None:
    wanted = {dataset for mixture in MIXTURES for dataset, _ in named_mixture(mixture)}
    assert wanted <= set(TRANSFORMS), wanted - set(TRANSFORMS)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_every_dataset_has_one_rate(name: str) -> None:
    rates = {TRANSFORMS[name].rate_hz, load_action_spec(name).action_hz} - {None}
    assert len(rates) == 1, rates


def test_the_documentation_names_every_dataset_with_its_camera() -> None:
    text = (Path(__file__).parents[1] / "docs/data_formats.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, transform in TRANSFORMS.items():
        described = [row for row in rows if f"`{name}`" in row]
        assert any(f"`{transform.camera}`" in row for row in described), name
