"""Folders as `openvla-ros replay` leaves them, made of recorded or invented episodes.

The answers are the recorded actions with errors of a known kind; the figures come from
`evaluation.metrics.summary`, so that what the report reads is what a replay writes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openvla_ros.action_specs import load_action_spec
from openvla_ros.evaluation.diagnosis.diagnosis import diagnose
from openvla_ros.evaluation.episode_record import EpisodeRecord, write_record
from openvla_ros.evaluation.metrics.comparison import compare_variants
from openvla_ros.evaluation.metrics.step_errors import error_units
from openvla_ros.evaluation.metrics.summary import summarize
from openvla_ros.model.action_stats import ActionStats, normalize, unnormalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec, Finding

KEY = "bridge_orig"
SPEC = load_action_spec(KEY)
#: About the ranges of BridgeData. (Those of the checkpoint come with torch, which takes seconds.)
STATS = ActionStats(
    unnorm_key=KEY,
    q01=np.array([-0.029, -0.042, -0.026, -0.078, -0.093, -0.21, 0.0]),
    q99=np.array([0.028, 0.041, 0.04, 0.081, 0.078, 0.20, 1.0]),
    mask=np.array([True] * 6 + [False]),
    source="report_case.py",
)
TOKENIZER = ActionTokenizer()


def jpeg_of(frame: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=85)
    return np.frombuffer(file.getvalue(), np.uint8)


def answered(
    name: str,
    instruction: str,
    actions: np.ndarray,
    frames: Sequence[np.ndarray],
    *,
    error: float = 0.3,
    seed: int = 0,
    late: int = 0,
    invalid: Sequence[int] = (),
    source: str = "recordings/kitchen",
    latency_ms: float = 160.0,
    rate_hz: float = 5.0,
) -> EpisodeRecord:
    """Return a record whose answers are `actions`, `late` steps later and a little off."""
    random = np.random.default_rng(seed)
    steps = len(actions)
    shifted = np.concatenate([np.repeat(actions[:1], late, axis=0), actions])[:steps]
    aim = normalize(np.nan_to_num(shifted), STATS)
    aim[:, :6] += error * random.normal(0.15, 0.5, (steps, 6))
    token_ids = TOKENIZER.encode(np.clip(aim, -1.0, 1.0))
    token_ids[list(invalid), 2] = 17
    normalized = TOKENIZER.decode(token_ids)
    predicted = unnormalize(normalized, STATS)
    distance = np.abs(normalized - normalize(actions, STATS)).mean(axis=1)
    known = [step for step in np.argsort(-distance).tolist() if np.isfinite(distance[step])]
    worst = known[: min(3, len(frames))]
    return EpisodeRecord(
        episode=name,
        source=source,
        instruction=instruction,
        rate_hz=rate_hz,
        stamps_ns=np.arange(steps, dtype=np.int64) * int(1e9 / rate_hz),
        recorded=actions,
        predicted=predicted,
        normalized=normalized,
        token_ids=token_ids,
        is_valid=TOKENIZER.is_action_token(token_ids).all(axis=1),
        latency_ms=latency_ms * np.exp(random.normal(0.0, 0.08, steps)),
        passes=np.full(steps, 7),
        worst_steps=np.array(worst, np.int64),
        worst_frames=tuple(jpeg_of(frames[step]) for step in worst),
    )


def invented_motion(steps: int, seed: int) -> np.ndarray:
    """(steps, 7): a reach in a bow, during which the gripper closes and opens again."""
    random = np.random.default_rng(seed)
    phase = np.linspace(0.0, 2.0 * np.pi, steps)[:, None] + random.uniform(0.0, 6.0, 6)
    actions = np.zeros((steps, 7))
    actions[:, :6] = np.sin(phase) * [0.016, 0.013, 0.02, 0.03, 0.03, 0.05]
    middle = np.arange(steps) / max(1, steps - 1)
    actions[:, 6] = np.where((middle > 0.4) & (middle < 0.8), 0.0, 1.0)
    return actions


def invented_frames(steps: int, seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """(steps, H, W, 3) uint8: a coloured slope that moves."""
    height, width = size
    slope = np.linspace(0, 200, width)[None, :] + np.linspace(0, 50, height)[:, None]
    shifts = 5 * np.arange(steps)[:, None, None] + 37 * seed
    return np.stack([(slope + shifts) % 256] * 3, axis=-1).astype(np.uint8)


def invented_records(
    episodes: int = 8, steps: int = 16, *, seed: int = 0, **how: Any
) -> list[EpisodeRecord]:
    how = {"error": 0.3, **how}
    return [
        answered(
            f"episode_{number:06d}",
            f"put item {number} into the drawer",
            invented_motion(steps, number),
            invented_frames(steps, number),
            seed=1000 * seed + number,
            **{**how, "error": how["error"] * (1.0 + number / episodes)},
        )
        for number in range(episodes)
    ]


def write_replay(
    out: Path,
    variants: dict[str, list[EpisodeRecord]],
    *,
    findings: Sequence[Finding] | None = None,
    problems: Sequence[str] = (),
    spec: ActionSpec = SPEC,
    stats: ActionStats = STATS,
    write_all: bool = True,
) -> dict[str, Any]:
    """Write what a replay leaves in `out` and return its metrics.json."""
    reference = next(iter(variants.values()))
    paths = sorted({record.source for record in reference})
    if write_all:
        for name, records in variants.items():
            for record in records:
                number = paths.index(record.source)
                path = out / "records" / name / f"{number:04d}_{record.episode}.npz"
                write_record(path, record)
    if findings is None:
        findings = diagnose(reference, None, spec, {stats.unnorm_key: stats}, KEY, TOKENIZER)
    metrics = {
        "format": 1,
        "complete": not problems,
        "problems": list(problems),
        "created": "2025-03-14T09:26:53+00:00",
        "command": "openvla-ros replay recordings/kitchen --checkpoint models/openvla --out replay",
        "sources": [
            {
                "path": path,
                "episodes": sum(record.source == path for record in reference),
                "steps": sum(len(record) for record in reference if record.source == path),
            }
            for path in paths
        ],
        "unnorm_key": stats.unnorm_key,
        "action_spec": {**dataclasses.asdict(spec), "sources": dict(spec.sources)},
        "units": error_units(spec),
        "variants": {
            name: {
                "policy": policy_of(name),
                **summarize(records, spec, stats, TOKENIZER).to_dict(),
            }
            for name, records in variants.items()
        },
        "comparisons": [
            row.to_dict() for row in compare_variants(variants, spec, stats, TOKENIZER)
        ],
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    out.mkdir(parents=True, exist_ok=True)
    plan = {"format": 1, "versions": {"openvla_ros": "0.5.0", "torch": "2.5.1"}}
    (out / "replay.json").write_text(json.dumps(plan), encoding="utf-8")
    text = json.dumps(metrics, allow_nan=False)
    (out / "metrics.json").write_text(text, encoding="utf-8")
    return json.loads(text)


def policy_of(variant: str) -> dict[str, Any]:
    return {
        "checkpoint": "models/openvla",
        "revision": "31f090d05236101ebfc381b61c674dd4746d4ce0",
        "unnorm_key": KEY,
        "quantization": "none" if variant == "base" else variant,
        "choices": {"dtype": "bfloat16: the GPU computes in it", "attention": "sdpa: no flash"},
    }
