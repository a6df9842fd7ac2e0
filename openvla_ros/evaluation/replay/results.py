"""From records to results: figures, verdicts, table, bag and report, in this order.

`metrics.json` and the report come last: where they are, the rest is whole.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import complete_spec
from openvla_ros.errors import OpenVLAError
from openvla_ros.evaluation.diagnosis.diagnosis import diagnose
from openvla_ros.evaluation.diagnosis.probes import ProbeResult
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.metrics.comparison import compare_variants
from openvla_ros.evaluation.metrics.step_errors import error_units
from openvla_ros.evaluation.metrics.summary import summarize
from openvla_ros.evaluation.replay.engines import Job
from openvla_ros.evaluation.replay.folder import (
    METRICS,
    REPLAY_BAG,
    STEPS,
    ReplayFolder,
    writing_file,
)
from openvla_ros.evaluation.replay.policy_description import PolicyDescription
from openvla_ros.evaluation.replay.step_table import write_step_table
from openvla_ros.types import ActionSpec, Finding


@dataclass(frozen=True)
class Problem:
    """A source, or one episode of it, that is left out.

    Attributes:
        source: As it was given.
        episode: Its name, or "" for the whole source.
        error: What is wrong.
    """

    source: str
    episode: str
    error: str

    def __str__(self) -> str:
        place = f"{self.source}, {self.episode}" if self.episode else self.source
        return self.error if self.error.startswith(self.source) else f"{place}: {self.error}"


@dataclass(frozen=True)
class VariantResult:
    """What was evaluated with one variant; the records are in the folder.

    Attributes:
        name: Of the variant.
        policy: Its description.
        jobs: The episodes that have a record.
        probes: Answers to the sanity probes, or None.
    """

    name: str
    policy: PolicyDescription
    jobs: tuple[Job, ...]
    probes: ProbeResult | None = None


@dataclass(frozen=True)
class Wishes:
    """What the user wants beside the figures.

    Attributes:
        command: How the evaluation was started.
        bag: Whether a bag with recorded topics and answers is written.
        node: Parameters of the node: for the meaning of actions, and for the bag's twists.
    """

    command: str = ""
    bag: bool = True
    node: NodeConfig = field(default_factory=NodeConfig)


def write_results(
    folder: ReplayFolder,
    results: Sequence[VariantResult],
    problems: Sequence[Problem],
    wishes: Wishes,
) -> None:
    """Write steps.csv, the bag, metrics.json and report.html.

    Args:
        folder: Holds the record of every job.
        results: One per variant, with the same jobs; the first is the reference.
        problems: What was left out.
        wishes: What the user wants beside the figures.

    Raises:
        ConfigurationError: The disk is full, or the folder is not writable.
    """
    from openvla_ros.evaluation.report import write_report

    results = [replace(r, policy=_with_meaning(r.policy, wishes.node)) for r in results]
    records = {result.name: _records(folder, result) for result in results}
    _write_steps(folder, records)
    if wishes.bag:
        _write_bag(folder, results[0], wishes.node)
    folder.write_json(METRICS, _metrics(results, records, problems, wishes.command))
    write_report(folder.path)


def _with_meaning(policy: PolicyDescription, node: NodeConfig) -> PolicyDescription:
    """Return the description with what the user's parameters say about the actions."""
    spec = complete_spec(policy.spec, node.action.overrides(), node.profile.expected())
    return replace(policy, spec=spec)


def _metrics(
    results: Sequence[VariantResult],
    records: Mapping[str, Sequence[EpisodeRecord]],
    problems: Sequence[Problem],
    command: str,
) -> dict[str, Any]:
    base = results[0].policy
    comparisons = compare_variants(
        records,
        base.spec,
        base.stats,
        base.tokenizer,
        own_stats={result.name: result.policy.stats for result in results},
    )
    return {
        "format": 1,
        "complete": not problems,
        "problems": [str(problem) for problem in problems],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "sources": _sources(results[0].jobs),
        "unnorm_key": base.unnorm_key,
        "action_spec": asdict(base.spec) | {"sources": dict(base.spec.sources)},
        "units": error_units(base.spec),
        "variants": {r.name: _variant(r, records[r.name], base.spec) for r in results},
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "findings": [
            asdict(finding) for r in results for finding in _findings(r, results, records)
        ],
    }


def _variant(
    result: VariantResult, records: Sequence[EpisodeRecord], spec: ActionSpec
) -> dict[str, Any]:
    """Return one variant; what the recordings mean, and with it every unit, is said once."""
    policy = result.policy
    figures = summarize(records, spec, policy.stats, policy.tokenizer).to_dict()
    info = asdict(policy.info) | {"unnorm_key": policy.unnorm_key}
    return {"policy": info | {"choices": dict(policy.info.choices)}} | figures


def _findings(
    result: VariantResult,
    results: Sequence[VariantResult],
    records: Mapping[str, Sequence[EpisodeRecord]],
) -> Iterator[Finding]:
    """Yield what was found about one variant, the self test first; all but the first are named."""
    policy = result.policy
    findings = policy.findings() + diagnose(
        records[result.name],
        result.probes,
        policy.spec,
        policy.norm_stats,
        policy.unnorm_key,
        policy.tokenizer,
    )
    for finding in findings:
        is_base = result is results[0]
        yield finding if is_base else replace(finding, section=f"{result.name}: {finding.section}")


def _sources(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        source = job.episode.source
        row = rows.setdefault(source, {"path": source, "episodes": 0, "steps": 0})
        row["episodes"] += 1
        row["steps"] += len(job.episode)
    return list(rows.values())


def _records(folder: ReplayFolder, result: VariantResult) -> list[EpisodeRecord]:
    """Return the records without their frames, which would be most of the memory."""
    nothing = np.zeros(0, np.int64)
    return [
        replace(record, worst_steps=nothing, worst_frames=())
        for record in _stored_records(folder, result)
    ]


def _stored_records(folder: ReplayFolder, result: VariantResult) -> Iterator[EpisodeRecord]:
    for job in result.jobs:
        record, why = folder.read_record(result.name, job.name)
        if record is None:
            raise OpenVLAError(
                f"The record of {job.name} ({result.name}) has gone or was damaged while the "
                f"results were made. {why} Give the same command again."
            )
        yield record


def _write_steps(folder: ReplayFolder, records: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    rows = ((name, record) for name, several in records.items() for record in several)
    length = max(r.predicted.shape[1] for several in records.values() for r in several)
    with writing_file(folder.path / STEPS) as partial:
        write_step_table(partial, rows, length)


def _write_bag(folder: ReplayFolder, result: VariantResult, node: NodeConfig) -> None:
    """Write the recorded topics with the answers of the reference, for rviz and Foxglove.

    Sources are recordings of any times: of several, each gets a bag of its own.
    """
    from openvla_ros.evaluation.motion.replay_bag import write_replay_bags

    policy = result.policy
    with folder.writing_folder(REPLAY_BAG) as path:
        write_replay_bags(
            path,
            [job.episode for job in result.jobs],
            _stored_records(folder, result),
            policy.spec,
            node.motion,
            node.gripper,
            tokenizer=policy.tokenizer,
        )
