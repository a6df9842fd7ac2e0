"""How far one answer is from the recorded action, step by step, in units a person can picture.

NaN stands for "does not apply to this step": not recorded, not known, a pause. Means leave it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from openvla_ros.control.displacement import StepLimits, euler_matrix
from openvla_ros.control.gripper import opening
from openvla_ros.control.motion import ACTION_DIM
from openvla_ros.control.pose import exponential_map
from openvla_ros.evaluation.metrics.stacked_records import Answers, Recordings
from openvla_ros.model.action_stats import ActionStats
from openvla_ros.types import ActionSpec

#: A recorded translation slower than this is a pause: its direction is that of noise. At 5 Hz it is
#: a step of 2 mm, 7 % of the 28 mm that BridgeData's x reaches in 99 % of its steps.
PAUSE_M_S = 0.01
#: Where metres are not known: a share of the diagonal from q01 to q99, halved; the same 2 mm for
#: `bridge_orig`, whose half diagonal is 60 mm.
PAUSE_SHARE = 1 / 30

OPEN_FROM = 0.5  # of the opening, 0 closed ... 1 open
DATASET_UNITS = "dataset units"


@dataclass(frozen=True)
class StepErrors:
    """N steps; float64, NaN where it does not apply. Units of lengths and angles: `error_units`.

    Attributes:
        translation: (N,) Euclidean distance of the answered translation from the recorded one.
        translation_by_axis: (N, 3) absolute differences.
        rotation: (N,) angle of the rotation that leads from the recorded to the answered one.
        rotation_by_axis: (N, 3) absolute differences of the three numbers.
        cosine: (N,) of the angle between both translations; 0 for an answer that stays where it
            is, NaN where the recorded one is a pause.
        normalized_l1: (N,) mean absolute difference of the recorded numbers, normalised.
        recorded_closed: (N,) 1 where the gripper is recorded closed, else 0.
        answered_closed: (N,) 1 where it is answered closed, else 0.
        gripper_right: (N,) 1 where both agree, else 0.
        tokens_equal: (N,) share of the ids that are those of the recorded action.
        is_clipped: (N,) 1 where the limit per step would cut the answer, else 0.
    """

    translation: np.ndarray
    translation_by_axis: np.ndarray
    rotation: np.ndarray
    rotation_by_axis: np.ndarray
    cosine: np.ndarray
    normalized_l1: np.ndarray
    recorded_closed: np.ndarray
    answered_closed: np.ndarray
    gripper_right: np.ndarray
    tokens_equal: np.ndarray
    is_clipped: np.ndarray


def step_errors(
    answers: Answers, recordings: Recordings, spec: ActionSpec, stats: ActionStats
) -> StepErrors:
    """Return the errors of every step.

    Actions of another number of numbers than 7 have no known layout: what is about translation,
    rotation, gripper or the limit is NaN for them.

    Args:
        answers: Of a policy or a baseline.
        recordings: The same N steps.
        spec: What the numbers mean; what it does not know is NaN, or in dataset units.
        stats: Of the dataset: tells pauses where metres are not known.
    """
    answered = np.where(np.isfinite(answers.actions), answers.actions, np.nan)
    recorded = recordings.actions
    if answered.shape[1] != ACTION_DIM:
        answered = recorded = np.full((len(recordings), ACTION_DIM), np.nan)
    unit_mm, unit_deg = _units(spec)
    by_axis = np.abs(answered[:, :6] - recorded[:, :6]) * np.repeat([unit_mm, unit_deg], 3)
    closed, recorded_closed = is_closed(answered[:, 6], spec), is_closed(recorded[:, 6], spec)
    unknown = np.isnan(closed) | np.isnan(recorded_closed)
    known = recorded_columns(recordings)
    far = np.abs(answers.normalized - recordings.normalized)[:, known]
    equal = (answers.token_ids == recordings.token_ids)[:, known].astype(np.float64)
    is_lost = np.isnan(recordings.actions[:, known]).any(axis=1) | (not known.any())
    return StepErrors(
        translation=np.linalg.norm(by_axis[:, :3], axis=1),
        translation_by_axis=by_axis[:, :3],
        rotation=_turned(answered[:, 3:6], recorded[:, 3:6], spec),
        rotation_by_axis=by_axis[:, 3:],
        cosine=_cosine(answered[:, :3], recorded[:, :3], pause(recordings, spec, stats)),
        normalized_l1=_row_means(far, is_lost),
        recorded_closed=recorded_closed,
        answered_closed=closed,
        gripper_right=np.where(unknown, np.nan, closed == recorded_closed),
        tokens_equal=_row_means(equal, is_lost),
        is_clipped=_is_clipped(answered, spec),
    )


def error_units(spec: ActionSpec) -> dict[str, str]:
    """Return the unit of translation and rotation errors: mm and deg, where the spec knows them."""
    return {
        "translation": "mm" if spec.translation_unit_m is not None else DATASET_UNITS,
        "rotation": DATASET_UNITS if _rotation_unit_rad(spec) is None else "deg",
    }


def is_closed(values: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Return (N,) 1 where a gripper number means closed, 0 where open; NaN where not known."""
    closed = np.full(len(values), np.nan)
    if spec.gripper_open is None or spec.gripper_closed is None:
        return closed
    known = np.isfinite(values)
    distinct, where = np.unique(values[known], return_inverse=True)
    closed[known] = np.array([opening(value, spec) < OPEN_FROM for value in distinct])[where]
    return closed


def pause(recordings: Recordings, spec: ActionSpec, stats: ActionStats) -> np.ndarray:
    """Return (N,) the translation below which a step is a pause, dataset units."""
    if spec.translation_unit_m is not None:
        return PAUSE_M_S / spec.translation_unit_m / recordings.rate_hz
    half_diagonal = float(np.linalg.norm(stats.q99[:3] - stats.q01[:3])) / 2
    return np.full(len(recordings), PAUSE_SHARE * half_diagonal)


def recorded_columns(recordings: Recordings) -> np.ndarray:
    """Return (n,) bool: numbers that some step has recorded. A twist topic has no gripper."""
    return ~np.isnan(recordings.actions).all(axis=0)


def _units(spec: ActionSpec) -> tuple[float, float]:
    """Millimetres and degrees per dataset unit; 1 where not known."""
    unit_mm = 1.0 if spec.translation_unit_m is None else 1000.0 * spec.translation_unit_m
    unit_rad = _rotation_unit_rad(spec)
    return unit_mm, 1.0 if unit_rad is None else math.degrees(unit_rad)


def _rotation_unit_rad(spec: ActionSpec) -> float | None:
    """Radians per dataset unit; None where the numbers do not become a rotation."""
    return None if spec.rotation_form is None else spec.rotation_unit_rad


def _turned(answered: np.ndarray, recorded: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """(N,) degrees between the rotations of (N, 3) and (N, 3), or distance in dataset units.

    Base or tool axes make no difference: the angle between two rotations is the same in both.
    """
    unit_rad = _rotation_unit_rad(spec)
    if unit_rad is None:
        return np.linalg.norm(answered - recorded, axis=1)
    known = ~np.isnan(answered + recorded).any(axis=1)
    there, here = (_matrices(v[known] * unit_rad, spec) for v in (answered, recorded))
    relative = np.einsum("nij,nkj->nik", there, here)  # (N, 3, 3): there = relative @ here
    axis = relative[:, [2, 0, 1], [1, 2, 0]] - relative[:, [1, 2, 0], [2, 0, 1]]
    sine, cosine = np.linalg.norm(axis, axis=1) / 2, (np.einsum("nii->n", relative) - 1) / 2
    degrees = np.full(len(answered), np.nan)
    degrees[known] = np.degrees(np.arctan2(sine, cosine))  # exact near 0, unlike arccos
    return degrees


def _matrices(radians: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """(N, 3, 3) rotations of (N, 3) numbers in radians."""
    if spec.rotation_form == "euler_xyz":
        return np.moveaxis(euler_matrix(radians.T), -1, 0)
    return np.array([exponential_map(row) for row in radians]).reshape(-1, 3, 3)


def _cosine(answered: np.ndarray, recorded: np.ndarray, pause_: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(recorded, axis=1)
    both = np.linalg.norm(answered, axis=1) * length
    dots = np.einsum("ni,ni->n", answered, recorded)
    cosine = np.divide(dots, both, out=np.zeros(len(both)), where=both > 0.0)
    is_known = ~np.isnan(both) & (length >= pause_) & (length > 0.0)
    return np.where(is_known, np.clip(cosine, -1.0, 1.0), np.nan)


def _row_means(values: np.ndarray, is_lost: np.ndarray) -> np.ndarray:
    """(N,) means of rows; NaN where lost. A row without numbers is always lost."""
    means = values.sum(axis=1) / max(1, values.shape[1])
    return np.where(is_lost, np.nan, means)


def _is_clipped(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """(N,) 1 where `control.displacement` would cut an axis to its default limit."""
    if spec.translation_unit_m is None or spec.rotation_unit_rad is None:
        return np.full(len(actions), np.nan)
    si = np.abs(actions[:, :6]) * np.repeat([spec.translation_unit_m, spec.rotation_unit_rad], 3)
    limits = StepLimits()
    cut = (si > np.repeat([limits.position_m, limits.rotation_rad], 3)).any(axis=1)
    return np.where(np.isnan(si).any(axis=1), np.nan, cut)
