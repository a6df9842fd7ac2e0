"""What a replay has left in its folder, read for the report: one metrics.json and the records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord, read_record
from openvla_ros.evaluation.replay.live_result import LIVE_FILE
from openvla_ros.evaluation.report.quantities import Units, units_of
from openvla_ros.types import ActionSpec, Finding

METRICS_FILE, PLAN_FILE, RECORDS_FOLDER = "metrics.json", "replay.json", "records"
FORMAT = 1


@dataclass(frozen=True)
class Results:
    """The figures of a replay, and where the records behind them lie.

    Attributes:
        folder: What `openvla-ros replay --out` filled.
        metrics: The metrics.json, see docs/replay_metrics.md.
    """

    folder: Path
    metrics: Mapping[str, Any]

    @property
    def variants(self) -> list[str]:
        """Names of what was compared; the first one is the reference."""
        return list(self.metrics["variants"])

    @cached_property
    def units(self) -> Units:
        """The units of motion in `metrics`."""
        return units_of(self.metrics)

    @cached_property
    def spec(self) -> ActionSpec:
        """What the numbers of an action mean."""
        known = {field.name for field in fields(ActionSpec)}
        return ActionSpec(**{k: v for k, v in self.metrics["action_spec"].items() if k in known})

    @property
    def findings(self) -> list[Finding]:
        """What was found, in words."""
        return [Finding(**finding) for finding in self.metrics["findings"]]

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what computed the answers, by name; empty where the plan is not there."""
        try:
            plan = json.loads((self.folder / PLAN_FILE).read_text(encoding="utf-8"))
            return {str(name): str(version) for name, version in plan["versions"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # the figures are valid without it

    @cached_property
    def live(self) -> dict[str, Any] | None:
        """What the live replay of the same bag gave; None where there was none."""
        path = self.folder / LIVE_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def figures(self, variant: str) -> Mapping[str, Any]:
        """Return the metrics of one variant."""
        return self.metrics["variants"][variant]["metrics"]

    def records(self, variant: str) -> Iterator[tuple[Path, EpisodeRecord]]:
        """Yield the records that the figures of a variant are made of, one in memory at a time.

        An interrupted replay may have left others.

        Raises:
            ConfigurationError: A record is damaged.
        """
        rows = self.metrics["variants"][variant]["per_episode"]
        judged = {(row["source"], row["episode"]) for row in rows}
        for path in sorted((self.folder / RECORDS_FOLDER / variant).glob("*.npz")):
            record = read_record(path)
            if (record.source, record.episode) in judged:
                yield path, record


def read_results(folder: Path) -> Results:
    """Return what a replay has left in its folder.

    Raises:
        ConfigurationError: There is no metrics.json, or it is damaged or of another version.
    """
    path = folder / METRICS_FILE
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        version = metrics["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({type(error).__name__}: {error}). A report is made of the "
            "folder that `openvla-ros replay --out` has filled; run it again with the same --out."
        ) from error
    if version != FORMAT:
        raise ConfigurationError(
            f"{path} has format {version!r}; this version reads {FORMAT}. Make the report with the "
            "version of openvla_ros that made the folder, or run the replay again."
        )
    return Results(folder, metrics)
