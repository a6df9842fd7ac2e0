"""What a replay evaluates, written down: a run goes on in a folder only if this is the same."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros import __version__
from openvla_ros.data.episode import Episode
from openvla_ros.data.fingerprint import fingerprint
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay.folder import plain
from openvla_ros.evaluation.replay.variants import Variant

#: Libraries whose version may change a last bit of an answer.
_LIBRARIES = ("numpy", "torch", "transformers", "pillow", "rosbags")


def plan_of(
    sources: Sequence[Path | Episode],
    variants: Sequence[Variant],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the plan of an evaluation, as JSON types.

    Args:
        sources: What is evaluated, in order.
        variants: By what.
        options: Whatever else decides about a record.

    Raises:
        ConfigurationError: A source does not exist, or cannot be read.
    """
    return {
        "format": 1,
        "sources": [_described_source(source) for source in sources],
        "variants": [_described_variant(variant) for variant in variants],
        "options": plain(dict(options)),
        "versions": versions(),
    }


@cache
def versions() -> dict[str, str]:
    """Return the versions of what computes the answers, by name."""
    found = {"openvla_ros": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"machine": f"{platform.machine()} {sys.platform}"}


def require_apart(sources: Sequence[Path | Episode], out: Path) -> None:
    """Return when `out` lies in none of the sources, which its files would change.

    Raises:
        ConfigurationError: It does.
    """
    for source in sources:
        if isinstance(source, Path) and source.is_dir():
            inside = source.resolve() in (out.resolve(), *out.resolve().parents)
            if inside:
                raise ConfigurationError(
                    f"--out {out} lies in the source {source}: results would become part of it. "
                    "Choose a folder outside."
                )


def _described_source(source: Path | Episode) -> dict[str, Any]:
    if isinstance(source, Path):
        return {"path": str(source), "fingerprint": fingerprint(source)}
    digest = hashlib.sha256(f"{source.instruction}\0{source.rate_hz!r}\0".encode())
    for array in (source.stamps_ns, source.actions):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"path": source.source, "episode": source.name, "fingerprint": digest.hexdigest()}


def _described_variant(variant: Variant) -> dict[str, Any]:
    """Return the variant, with the content of the folders it names."""
    described = plain(variant.described())
    for key in ("checkpoint", "adapter"):
        folder = Path(described[key]).expanduser() if described[key] else None
        if folder is not None and folder.is_dir():  # else a hub id, or a mistake that load reports
            described[f"{key}_fingerprint"] = fingerprint(folder)
    return described
