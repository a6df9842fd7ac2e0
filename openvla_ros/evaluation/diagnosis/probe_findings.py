"""What the sanity probes show: whether a policy sees and reads, and gets the right picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openvla_ros.evaluation.diagnosis.evidence import (
    MOTION,
    SECTION,
    Fit,
    Steps,
    correlation_of,
    follows_better,
    not_judged,
)
from openvla_ros.evaluation.diagnosis.probes import (
    AS_IS,
    BGR,
    BLACK,
    MIRRORED,
    NOISE,
    SWAPPED,
    UPSIDE_DOWN,
    ProbeResult,
)
from openvla_ros.types import Finding

#: Fewer frames may agree by chance: an arm that waits is answered alike whatever it is told.
LEAST_FRAMES = 10
#: Where it was measured (docs/benchmarks/planted_faults.md) black frames and noise change most ids;
#: numbers that a GPU rounds otherwise change single ones.
BLIND_CHANGED = 0.02
#: A policy may honestly ignore the wording for most frames, where the picture tells the task. One
#: that hears answers at least some of them otherwise.
DEAF_EQUAL = 0.99
#: A picture must raise the correlation with the recordings by so much: what training with flips or
#: colour noise leaves between pictures stays below, a wrong picture costs more.
PICTURE_GAIN = 0.2

_PICTURES: Mapping[str, tuple[str, str, str]] = {
    BGR: (
        "colour order",
        "colours are probably swapped (BGR)",
        "Declare the true encoding of the images (rgb8 or bgr8), or swap the channels where they "
        "are decoded.",
    ),
    MIRRORED: (
        "mirrored picture",
        "the image is probably mirrored",
        "Undo the flip in the camera driver or in the conversion of the data.",
    ),
    UPSIDE_DOWN: (
        "upside-down picture",
        "the image is probably upside down",
        "Rotate it by 180 degrees: the image option of the policy, or the camera's own.",
    ),
}


def sight_finding(probes: ProbeResult) -> Finding:
    """Return whether black frames and noise change the answers."""
    if len(probes) < LEAST_FRAMES:
        return not_judged("sight", f"{len(probes)} frames probed, {LEAST_FRAMES} needed")
    black, noise = (_ids_changed(probes, probe) for probe in (BLACK, NOISE))
    numbers = f"a black picture changes {black:.1%} of the ids, noise {noise:.1%}"
    if noise >= BLIND_CHANGED > black:
        return Finding(
            SECTION,
            "sight",
            f"frames are answered like black ones: {numbers}",
            "Look at the recorded frames: the camera may have been covered or not running.",
            "warn",
        )
    if max(black, noise) >= BLIND_CHANGED:
        return Finding(SECTION, "sight", numbers, "the policy looks at its image")
    return Finding(
        SECTION,
        "sight",
        f"blind: {numbers}",
        f"{len(probes)} frames are answered as if there was no picture. See that the image reaches "
        "the network, and that the checkpoint holds the weights of its vision towers.",
        "problem",
    )


def hearing_finding(probes: ProbeResult) -> Finding:
    """Return whether another instruction changes the answers."""
    if len(probes) < LEAST_FRAMES:
        return not_judged("hearing", f"{len(probes)} frames probed, {LEAST_FRAMES} needed")
    equal = (probes.token_ids[SWAPPED] == probes.token_ids[AS_IS]).all(axis=1).mean()
    numbers = f"{equal:.1%} of the actions stay with {probes.swapped_by}"
    if equal < DEAF_EQUAL:
        return Finding(SECTION, "hearing", numbers, "the instruction changes answers")
    return Finding(
        SECTION,
        "hearing",
        f"deaf: {numbers}",
        f"The instruction changes nothing in {len(probes)} frames, where even a policy that mostly "
        "goes by its picture changes some. See that the instruction reaches the prompt. After "
        "fine-tuning on one task alone it is to be expected: then do not use it for another.",
        "problem",
    )


def picture_findings(probes: ProbeResult, seed: int) -> tuple[list[Finding], str]:
    """Return one finding per kind of wrong picture, and the probe whose picture is right.

    At most one is a problem: the picture with which the answers follow the recordings best.
    Correlation decides, which wrong units, statistics or offsets leave as it is: they neither hide
    a wrong picture nor look like one.
    """
    steps = probed_steps(probes, AS_IS)
    missing = steps.lacks
    if missing:
        return [not_judged(item, missing) for item, _, _ in _PICTURES.values()], AS_IS
    fits = {name: Fit.of(probed_steps(probes, name), MOTION) for name in (AS_IS, *_PICTURES)}
    follow = {name: correlation_of(fit) for name, fit in fits.items()}
    best = max(follow, key=lambda name: follow[name])
    if best != AS_IS and not follows_better(
        fits[best], fits[AS_IS], seed, gain=PICTURE_GAIN, looks=len(_PICTURES)
    ):
        best = AS_IS
    findings = []
    for name, (item, fault, advice) in _PICTURES.items():
        numbers = f"correlation with the recordings {follow[AS_IS]:.2f}, {follow[name]:.2f} when "
        numbers += _DONE[name]
        if name == best:
            findings.append(Finding(SECTION, item, f"{fault}: {numbers}", advice, "problem"))
        else:
            findings.append(Finding(SECTION, item, numbers, "no evidence that it is wrong"))
    return findings, best


_DONE = {BGR: "colours are swapped", MIRRORED: "mirrored", UPSIDE_DOWN: "turned by 180 degrees"}


def probed_steps(probes: ProbeResult, name: str) -> Steps:
    """Return the answers under one probe beside the recordings; steps are not consecutive."""
    names = list(zip(probes.sources, probes.episodes, strict=True))
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    is_valid = probes.is_valid[name][:, None]
    return Steps(
        recorded=probes.recorded,
        predicted=np.where(is_valid, probes.predicted[name], np.nan),
        normalized=np.where(is_valid, probes.normalized[name], np.nan),
        episode=np.array([numbers[name] for name in names], np.int64),
        step=probes.steps,
    )


def _ids_changed(probes: ProbeResult, name: str) -> float:
    return float((probes.token_ids[name] != probes.token_ids[AS_IS]).mean())
