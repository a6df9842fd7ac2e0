"""Figures over real BridgeData actions, against a computation that shares no code with them.

The policy here is a made-up one: it is late by a step, a little too large, and turned.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_records import SPEC, STATS, TOKENIZER, record

from openvla_ros.evaluation.metrics.summary import VariantMetrics, summarize
from openvla_ros.model.action_stats import normalize

HZ = 5.0


@pytest.fixture(scope="module")
def recorded(reference_dir: Path) -> np.ndarray:
    """(25, 10, 7) actions of real episodes."""
    with np.load(reference_dir / "bridge_octo_actions.npz", allow_pickle=False) as stored:
        (name,) = stored.files
        return stored[name].astype(np.float64)


@pytest.fixture(scope="module")
def predicted(recorded: np.ndarray) -> np.ndarray:
    """(25, 10, 7): bin centres, as a policy gives them."""
    late = np.concatenate([recorded[:, :1], recorded[:, :-1]], axis=1)
    late[..., :6] *= 1.2
    late[..., 5] += 0.05
    bins = np.clip(np.round((late - STATS.q01) / (STATS.q99 - STATS.q01) * 254), 0, 254)
    return STATS.q01 + (2 * bins + 1) / 510 * (STATS.q99 - STATS.q01)


@pytest.fixture(scope="module")
def found(recorded: np.ndarray, predicted: np.ndarray) -> VariantMetrics:
    records = []
    for index, (actions, answers) in enumerate(zip(recorded, predicted, strict=True)):
        token_ids = TOKENIZER.encode(2 * (answers - STATS.q01) / (STATS.q99 - STATS.q01) - 1)
        token_ids[:, 6] = TOKENIZER.encode(answers[:, 6])
        made = record(f"episode_{index:03d}", actions, token_ids, rate_hz=HZ)
        np.testing.assert_allclose(made.predicted[:, :6], answers[:, :6], atol=1e-12)
        records.append(made)
    return summarize(records, SPEC, STATS, TOKENIZER)


def turned(rpy: np.ndarray) -> np.ndarray:
    """Quaternion w x y z of Rz Ry Rx."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy / 2), np.sin(rpy / 2)
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )


def test_translation_and_direction(found: VariantMetrics, recorded, predicted) -> None:
    errors, cosines = [], []
    for a, b in zip(recorded.reshape(-1, 7), predicted.reshape(-1, 7), strict=True):
        errors.append(1000 * math.dist(a[:3], b[:3]))
        if math.hypot(*a[:3]) * HZ >= 0.01:
            cosines.append(float(a[:3] @ b[:3]) / math.hypot(*a[:3]) / math.hypot(*b[:3]))
    figures = found.metrics.translation_error
    assert figures.mean == pytest.approx(np.mean(errors))
    assert figures.median == pytest.approx(np.median(errors))
    assert found.metrics.direction_cosine.mean == pytest.approx(np.mean(cosines))
    assert found.metrics.direction_cosine.steps == len(cosines) > 100
    assert found.metrics.translation_error.by_axis[1] == pytest.approx(
        1000 * np.abs(recorded - predicted)[..., 1].mean()
    )


def test_rotation(found: VariantMetrics, recorded, predicted) -> None:
    angles = [
        math.degrees(2 * math.acos(min(1.0, abs(float(turned(a[3:6]) @ turned(b[3:6]))))))
        for a, b in zip(recorded.reshape(-1, 7), predicted.reshape(-1, 7), strict=True)
    ]
    assert found.metrics.rotation_error.mean == pytest.approx(np.mean(angles), abs=1e-5)
    assert found.metrics.rotation_error.p90 == pytest.approx(np.percentile(angles, 90), abs=1e-5)


def test_gripper(found: VariantMetrics, recorded, predicted) -> None:
    closed, said = recorded[..., 6] < 0.5, found_closed(predicted)
    gripper = found.metrics.gripper
    assert gripper.accuracy == pytest.approx((closed == said).mean())
    assert gripper.recall == pytest.approx((closed & said).sum() / closed.sum())
    assert gripper.precision == pytest.approx((closed & said).sum() / said.sum())
    assert gripper.recorded_events == (closed[:, 1:] != closed[:, :-1]).sum() > 0
    assert all(event["delay_steps"] in (1, None) for event in gripper.events)
    assert gripper.mean_delay_s == pytest.approx(1 / HZ)


def found_closed(predicted: np.ndarray) -> np.ndarray:
    """A gripper id is a bin of [-1, 1]: what is answered is the centre of that bin."""
    return np.floor((predicted[..., 6] + 1) / 2 * 255) < np.floor(1.5 / 2 * 255)


def test_tokens_and_the_normalised_error(found: VariantMetrics, recorded, predicted) -> None:
    span = STATS.q99 - STATS.q01
    labels = np.clip(2 * (recorded - STATS.q01) / span - 1, -1, 1)
    labels[..., 6] = recorded[..., 6]
    answers = 2 * (predicted - STATS.q01) / span - 1
    label_bins = np.clip(np.floor((labels + 1) / 2 * 255), 0, 255)  # 255 is exactly 1.0
    bins = np.floor((answers + 1) / 2 * 255 + 1e-6)
    motion = [round(float(x), 9) for x in (label_bins == bins)[..., :6].mean(axis=(0, 1))]
    assert found.metrics.tokens.equal_by_dimension[:6] == pytest.approx(motion)
    assert 0 < found.metrics.tokens.equal < 1
    far = np.abs(labels - np.clip(answers, -1, 1))[..., :6].mean()
    grip = np.abs(labels - normalize(centred(predicted), STATS))[..., 6].mean()
    assert found.metrics.normalized_l1 == pytest.approx((6 * far + grip) / 7, abs=1e-6)


def centred(predicted: np.ndarray) -> np.ndarray:
    answered = predicted.copy()
    index = np.clip(np.floor((predicted[..., 6] + 1) / 2 * 255), 0, 254)
    answered[..., 6] = (2 * index + 1) / 255 - 1
    return answered


def test_the_baselines(found: VariantMetrics, recorded: np.ndarray) -> None:
    motion, constant = recorded[..., :3], recorded[..., :3].mean(axis=(0, 1))
    size = 1000 * np.linalg.norm(motion, axis=-1)
    assert found.zero.translation_error.mean == pytest.approx(size.mean())
    around = 1000 * np.linalg.norm(motion - constant, axis=-1)
    assert found.mean_action.translation_error.mean == pytest.approx(around.mean())
    steps = 1000 * np.linalg.norm(motion[:, 1:] - motion[:, :-1], axis=-1)
    assert found.previous_action is not None
    assert found.previous_action.figures.translation_error.mean == pytest.approx(steps.mean())
    assert found.previous_action.steps == 25 * 9
