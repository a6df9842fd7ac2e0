"""When the steps of a recording were taken: rate, jitter, holes, stamps that stand still.

A step is what the policy learns to do within one period, so a period that varies is a step of
varying size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.types import Finding

SECTION = "Timing"

#: OpenVLA answers about five times a second on its authors' GPU, and without a history it cannot
#: leave a state that many equal frames show: its maintainers advise demonstrations of 5 to 10 Hz.
ADVISED_HZ = (5.0, 10.0)
RATE_TOLERANCE = 0.1  # of the rate: a step that is a tenth longer is a tenth larger
JITTER_TOLERANCE = 0.25  # of a period: beyond, the step and the image are not of one instant
DROPPED_PERIODS = 1.75  # of the median: a lost step makes 2, and jitter seldom so much
DROPPED_TOLERANCE = 0.01  # share of the ticks


@dataclass(frozen=True)
class Timing:
    """Periods between the images of all episodes together.

    Attributes:
        stated_hz: Lowest and highest rate that the episodes state.
        measured_hz: 1 / median period; None when no episode has two steps.
        jitter_p99_ms: 99 % of the periods are this close to the median, holes left out.
        dropped_steps: Ticks of the measured rate at which there is no image.
        longest_gap_s: The longest period.
        duplicate_stamps: Steps whose stamp is not later than the one before.
        periods: How many there are.
    """

    stated_hz: tuple[float, float]
    measured_hz: float | None
    jitter_p99_ms: float
    dropped_steps: int
    longest_gap_s: float
    duplicate_stamps: int
    periods: int


def measure_timing(stamps_ns: Sequence[np.ndarray], rates_hz: Sequence[float]) -> Timing:
    """Return the timing of episodes.

    Args:
        stamps_ns: (T,) int64 per episode.
        rates_hz: The rate that each episode states.
    """
    parts = [np.diff(stamps) / 1e9 for stamps in stamps_ns]
    periods = np.concatenate([*parts, np.zeros(0)])
    stated = (min(rates_hz), max(rates_hz))
    forward = periods[periods > 0]
    if not len(forward):
        return Timing(stated, None, 0.0, 0, 0.0, len(periods), len(periods))
    median = float(np.median(forward))
    holes = forward[forward > DROPPED_PERIODS * median]
    regular = forward[forward <= DROPPED_PERIODS * median]
    return Timing(
        stated_hz=stated,
        measured_hz=1 / median,
        jitter_p99_ms=float(1000 * np.quantile(np.abs(regular - median), 0.99)),
        dropped_steps=int(np.sum(np.rint(holes / median) - 1)),
        longest_gap_s=float(forward.max()),
        duplicate_stamps=len(periods) - len(forward),
        periods=len(periods),
    )


def judge_timing(timing: Timing, action_hz: float | None) -> list[Finding]:
    """Return what is to be said about the timing.

    Args:
        timing: As measured.
        action_hz: The rate of the statistics key's dataset; None = not published.
    """
    if timing.measured_hz is None:
        value = f"stated as {timing.stated_hz[0]:g} Hz; no episode has two steps to measure it by"
        return [Finding(SECTION, "rate", value)]
    findings = [_rate(timing), *_agreement(timing, action_hz), _jitter(timing)]
    return [*findings, _dropped(timing), *_duplicates(timing)]


def _rate(timing: Timing) -> Finding:
    assert timing.measured_hz is not None
    value = f"{timing.measured_hz:.2f} Hz (median of {timing.periods} periods)"
    low, high = ADVISED_HZ
    if timing.measured_hz > high * (1 + RATE_TOLERANCE):
        reason = (
            f"OpenVLA learns best from {low:g} to {high:g} Hz: faster frames look all the same to "
            "a model without memory. Resample to the rate at which the policy will run "
            "(rate_hz in the topic file, or --rate-hz)."
        )
        return Finding(SECTION, "rate", value, reason, "warn")
    if timing.measured_hz < low * (1 - RATE_TOLERANCE):
        reason = (
            f"OpenVLA learns best from {low:g} to {high:g} Hz: slower steps are long and cannot be "
            "corrected on the way. Record faster, or run the policy at this rate."
        )
        return Finding(SECTION, "rate", value, reason, "warn")
    return Finding(SECTION, "rate", value, f"{low:g} to {high:g} Hz are advised.")


def _agreement(timing: Timing, action_hz: float | None) -> list[Finding]:
    """Whether stamps, the stated rate and the rate of the key are the same."""
    assert timing.measured_hz is not None
    findings = []
    low, high = timing.stated_hz
    if _differ(low, high):
        findings.append(
            Finding(
                SECTION,
                "stated rate",
                f"{low:g} Hz to {high:g} Hz, by episode",
                "One training set has one rate: resample, or audit the sources one by one.",
                "warn",
            )
        )
    elif _differ(timing.measured_hz, low):
        findings.append(
            Finding(
                SECTION,
                "stated rate",
                f"{low:g} Hz, but the stamps are {timing.measured_hz:.2f} Hz apart",
                "Speeds are computed with the stated rate; correct it, or resample.",
                "warn",
            )
        )
    if action_hz is not None and _differ(timing.measured_hz, action_hz):
        findings.append(
            Finding(
                SECTION,
                "rate of the key",
                f"the key's dataset has {action_hz:g} Hz, this {timing.measured_hz:.2f} Hz",
                "A policy answers with steps of its key's rate; resample to it, or train with "
                "statistics of your own.",
                "warn",
            )
        )
    return findings


def _differ(one_hz: float, other_hz: float) -> bool:
    return abs(one_hz - other_hz) > RATE_TOLERANCE * min(one_hz, other_hz)


def _jitter(timing: Timing) -> Finding:
    assert timing.measured_hz is not None
    share = timing.jitter_p99_ms * timing.measured_hz / 1000
    value = f"{timing.jitter_p99_ms:.1f} ms (p99), {100 * share:.0f} % of a period"
    if share > JITTER_TOLERANCE:
        reason = (
            f"More than {100 * JITTER_TOLERANCE:.0f} % of a period: images and actions of a step "
            "do not belong together. Stamp images when they are taken (header.stamp), not when "
            "they arrive, and look at the load of the recording machine."
        )
        return Finding(SECTION, "jitter", value, reason, "warn")
    return Finding(SECTION, "jitter", value)


def _dropped(timing: Timing) -> Finding:
    ticks = timing.periods + timing.dropped_steps
    share = timing.dropped_steps / ticks
    value = f"{timing.dropped_steps} of {ticks}, longest gap {timing.longest_gap_s:.2f} s"
    if share > DROPPED_TOLERANCE:
        reason = (
            "Images are missing, and the step across a hole is larger than the others. Record "
            "with less load (compressed images, a faster disk), or split episodes there "
            "(split.gap_s in the topic file)."
        )
        return Finding(SECTION, "dropped steps", value, reason, "warn")
    return Finding(SECTION, "dropped steps", value)


def _duplicates(timing: Timing) -> list[Finding]:
    if not timing.duplicate_stamps:
        return []
    reason = (
        "No two images are taken at one time, and time does not run backwards: the driver does not "
        "set header.stamp, or clocks were changed while recording. Pairs of image and action "
        "cannot be trusted."
    )
    value = f"{timing.duplicate_stamps} of {timing.periods} stamps are not later than the last"
    return [Finding(SECTION, "duplicate stamps", value, reason, "problem")]
