"""What is broken between a robot and its policy, told from a replay: in words, with numbers.

A problem is named only when the data make it certain or very likely. A policy that answers badly is
no broken pipeline, and gives no finding but the warning that trivial answers are as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openvla_ros.evaluation.diagnosis.evidence import GRIPPER, not_judged, steps_of
from openvla_ros.evaluation.diagnosis.motion_findings import (
    polarity_finding,
    shift_finding,
    trivial_findings,
)
from openvla_ros.evaluation.diagnosis.probe_findings import (
    hearing_finding,
    picture_findings,
    probed_steps,
    sight_finding,
)
from openvla_ros.evaluation.diagnosis.probes import AS_IS, ProbeResult
from openvla_ros.evaluation.diagnosis.size_findings import size_findings
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.model.action_stats import ActionStats
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec, Finding


def diagnose(
    records: Sequence[EpisodeRecord],
    probes: ProbeResult | None,
    spec: ActionSpec,
    norm_stats: Mapping[str, ActionStats],
    unnorm_key: str,
    tokenizer: ActionTokenizer,
    *,
    seed: int = 0,
) -> list[Finding]:
    """Return what was looked at, one finding each: sound ("ok"), a drawback, or a problem.

    What cannot be judged says so, with level "ok" and the reason. A wrong picture is corrected by
    the matching probe before motion is looked at, a time shift before size: a fault is not named
    for what another explains.

    Args:
        records: At least one; all of one policy.
        probes: Answers of the same policy to some of the frames, or None.
        spec: Of the statistics key.
        norm_stats: All statistics of the checkpoint.
        unnorm_key: Those in use.
        tokenizer: That of the checkpoint.
        seed: Of the bootstrap.
    """
    findings: list[Finding] = []
    steps = steps_of(records, tokenizer)
    if steps.recorded.shape[1] != GRIPPER + 1:
        why = f"actions have {steps.recorded.shape[1]} numbers; {GRIPPER + 1} are understood"
        return [*_senses(probes), not_judged("motion", why)]
    findings += _senses(probes)
    picture = AS_IS
    if probes is not None:
        pictures, picture = picture_findings(probes, seed)
        findings += pictures
    if picture == AS_IS:
        shift, steps = shift_finding(steps, seed)
        findings.append(shift)
    else:
        assert probes is not None
        steps = probed_steps(probes, picture)
        findings.append(not_judged("time shift", "correct the picture first"))
    findings += size_findings(steps, norm_stats, unnorm_key, seed)
    findings.append(polarity_finding(steps, spec, seed))
    if not any(finding.level == "problem" for finding in findings):
        findings += trivial_findings(steps)
    return findings


def _senses(probes: ProbeResult | None) -> list[Finding]:
    if probes is None:
        why = "the sanity probes were not run"
        return [not_judged(item, why) for item in ("sight", "hearing", "picture")]
    return [sight_finding(probes), hearing_finding(probes)]
