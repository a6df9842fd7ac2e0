"""What makes a run this run: a resumed one must agree in it, or it would be neither."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openvla_ros.errors import ConfigurationError
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import plain_config
from openvla_ros.training.datasets import TrainingSet

#: Keys that say where or how often, or whose content is compared in place of their names.
_FREE = (
    "base",
    "revision",
    "data.mixture_folder",
    "data.workers",
    "data.cache_folder",
    "data.sources.*.path",
    "data.sources.*.topics",
    "data.sources.*.action_spec.*",
    "run.out",
    "run.device",
    "run.save_every",
    "run.keep",
    "run.evaluate_every",
    "run.evaluation_samples",
    "run.log_every",
    "run.target_accuracy",
    "run.tensorboard",
    "run.wandb_project",
)


def identify(
    config: FinetuneConfig, base_fingerprint: str, sets: Sequence[TrainingSet], world_size: int
) -> dict[str, Any]:
    """Return dotted name -> JSON value of everything that decides the course of a run."""
    plain = plain_config(config)
    free = [*_FREE, *(["optimization.max_steps"] if _may_grow(config) else [])]
    found = {k: v for k, v in _flat(plain).items() if not any(_fits(k, key) for key in free)}
    found["the weights of the base"] = base_fingerprint
    found["processes"] = world_size
    for one in sets:
        found[f"the data of {one.name}"] = {
            "content": one.identity,
            "weight": one.weight,
            "steps": one.steps,
            "episodes": len(one.episodes),
            "held_out": len(one.held_out),
        }
    return json.loads(json.dumps(found))


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> None:
    """Return when a run may go on.

    Args:
        before: Identity of the checkpoint.
        now: Identity of what was asked for.
        folder: Named in the error.

    Raises:
        ConfigurationError: They differ; all differences are named.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        listed = "; ".join(f"{n}: {before.get(n)!r} before, {now.get(n)!r} now" for n in names)
        raise ConfigurationError(
            f"{folder} holds another run, which cannot go on like this. {listed}. Undo that, or "
            "start over with --no-resume (resume=False) or another run.out."
        )


def _may_grow(config: FinetuneConfig) -> bool:
    """Whether more steps change nothing about those before."""
    return config.optimization.schedule == "constant"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        items = {str(i): item for i, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in items:
        found |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def _fits(key: str, pattern: str) -> bool:
    parts, wanted = key.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(
        w in ("*", p) for p, w in zip(parts, wanted, strict=True)
    )
