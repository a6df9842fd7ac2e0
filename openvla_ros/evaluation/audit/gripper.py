"""What the gripper does in a recording, and whether its numbers mean what the key says.

A gripper that is recorded the other way round gives a policy that opens to grasp. Nothing in one
number shows it: how episodes begin, and what the measured gripper did, together do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.types import ActionSpec, Finding

SECTION = "Gripper"
GRIPPER = 6  # place in an action and in a state

BEYOND = 0.05  # of the range: readings exceed their ends a little
OUTSIDE_PROBLEM = 0.01  # share of the steps
MIDDLE = (0.1, 0.9)  # of the range: neither open nor closed
MIDDLE_WARNING = 0.2  # BridgeData has 2 %: the gripper passes the middle, and does not stay there
CHATTER_S = 0.5  # nobody opens and closes on purpose as fast
LEAST_EPISODES = 5  # fewer may begin with anything
START_OPEN, START_CLOSED = 0.8, 0.2  # share of the episodes: a task begins with an empty hand
OPPOSED = -0.3  # correlation of command and state
LISTED = 5


@dataclass(frozen=True)
class GripperFacts:
    """The gripper of all episodes; 0 is closed and 1 open by the spec.

    Attributes:
        start_open_share: Of the episodes whose first recorded command is nearer to open.
        state_correlation: Of command and measured gripper; None without a state that moves.
        lowest: Lowest recorded value, in dataset units.
        highest: Highest.
        outside_share: Of the steps beyond closed or open.
        middle_share: Of the steps that are neither.
        opens: How often it opens.
        closes: How often it closes.
        events_by_episode: One count per episode.
        chatter: Episodes with two events within half a second.
    """

    start_open_share: float
    state_correlation: float | None
    lowest: float
    highest: float
    outside_share: float
    middle_share: float
    opens: int
    closes: int
    events_by_episode: tuple[int, ...]
    chatter: tuple[str, ...]


def measure_gripper(
    names: Sequence[str],
    commands: Sequence[np.ndarray],
    states: Sequence[np.ndarray | None],
    rates_hz: Sequence[float],
    spec: ActionSpec,
) -> GripperFacts | None:
    """Return what the gripper does; None when nothing was recorded.

    Args:
        names: Of the episodes.
        commands: (T,) per episode, dataset units; NaN where nothing was recorded.
        states: (T,) measured gripper in any unit, or None.
        rates_hz: Steps per second.
        spec: With `gripper_open` and `gripper_closed` known.
    """
    assert spec.gripper_open is not None and spec.gripper_closed is not None
    span = spec.gripper_open - spec.gripper_closed
    openings = [(episode - spec.gripper_closed) / span for episode in commands]
    known = [episode[np.isfinite(episode)] for episode in openings]
    everything = np.concatenate([*known, np.zeros(0)])
    if not len(everything):
        return None
    changes = [gripper_changes(episode) for episode in openings]
    raw = spec.gripper_closed + span * everything
    starts = [episode[0] >= 0.5 for episode in known if len(episode)]
    return GripperFacts(
        start_open_share=float(np.mean(starts)),
        state_correlation=_correlation(openings, states),
        lowest=float(raw.min()),
        highest=float(raw.max()),
        outside_share=float(np.mean((everything < -BEYOND) | (everything > 1 + BEYOND))),
        middle_share=float(np.mean((everything > MIDDLE[0]) & (everything < MIDDLE[1]))),
        opens=sum(opens for episode in changes for _, opens in episode),
        closes=sum(not opens for episode in changes for _, opens in episode),
        events_by_episode=tuple(len(episode) for episode in changes),
        chatter=tuple(
            name
            for name, episode, rate_hz in zip(names, changes, rates_hz, strict=True)
            if len(episode) > 1
            and np.diff([step for step, _ in episode]).min() < CHATTER_S * rate_hz
        ),
    )


def gripper_changes(opening: np.ndarray) -> list[tuple[int, bool]]:
    """Return (step, whether it opens) of every change; (T,) 0 closed ... 1 open, NaN not known."""
    steps = np.flatnonzero(np.isfinite(opening))
    is_open = opening[steps] >= 0.5
    at = np.flatnonzero(np.diff(is_open.astype(np.int8))) + 1
    return [(int(steps[i]), bool(is_open[i])) for i in at]


def judge_gripper(facts: GripperFacts, spec: ActionSpec) -> list[Finding]:
    """Return what is to be said about the gripper."""
    return [
        _polarity(facts),
        _range(facts, spec),
        _events(facts, spec),
        *_chatter(facts),
        _middle(facts),
    ]


def _polarity(facts: GripperFacts) -> Finding:
    share, correlation = facts.start_open_share, facts.state_correlation
    episodes = len(facts.events_by_episode)
    value = f"{100 * share:.0f} % of {episodes} episodes begin open"
    if correlation is not None:
        value += f", correlation with the state {correlation:+.2f}"
    is_opposed = correlation is not None and correlation < OPPOSED
    begins_closed = episodes >= LEAST_EPISODES and share <= START_CLOSED
    if is_opposed and begins_closed:
        reason = (
            "Episodes begin closed, and the measured gripper opens when it is told to close: the "
            "action is recorded the other way round. Swap gripper.open and gripper.closed in "
            "the topic file."
        )
        return Finding(SECTION, "gripper polarity", value, reason, "problem")
    if is_opposed and not (episodes >= LEAST_EPISODES and share >= START_OPEN):
        reason = (
            "Action and state count in opposite directions, and one of them may be the wrong way "
            "round. Look at a frame: the action must say open when the fingers are apart."
        )
        return Finding(SECTION, "gripper polarity", value, reason, "warn")
    if begins_closed:
        reason = (
            "A task usually begins with an open gripper. If these do, too, swap open and closed; "
            "if they are pushes, all is well."
        )
        return Finding(SECTION, "gripper polarity", value, reason, "warn")
    reason = "The state counts the other way round." if is_opposed else ""
    return Finding(SECTION, "gripper polarity", value, reason)


def _range(facts: GripperFacts, spec: ActionSpec) -> Finding:
    value = f"{facts.lowest:.3g} … {facts.highest:.3g}"
    ends = f"The key means {spec.gripper_closed:g} closed and {spec.gripper_open:g} open"
    if facts.outside_share > OUTSIDE_PROBLEM:
        reason = (
            f"{ends}; {100 * facts.outside_share:.0f} % of the steps lie beyond. This is another "
            "convention (-1 open and +1 closed, per cent, 0 … 255): convert it in the reader."
        )
        return Finding(SECTION, "gripper range", value, reason, "problem")
    span = _span(spec)
    moves = facts.highest - facts.lowest
    if BEYOND**2 * span < moves < 0.5 * span:
        reason = (
            f"{ends}; the recording uses a small part of that: a width in metres? Divide by the "
            "largest opening."
        )
        return Finding(SECTION, "gripper range", value, reason, "problem")
    return Finding(SECTION, "gripper range", value)


def _events(facts: GripperFacts, spec: ActionSpec) -> Finding:
    counts = np.array(facts.events_by_episode)
    still = int(np.sum(counts == 0))
    value = (
        f"{facts.closes} × close, {facts.opens} × open; {counts.mean():.1f} per episode, "
        f"at most {counts.max()}; {still} of {len(counts)} episodes without"
    )
    if facts.closes + facts.opens == 0 and facts.highest - facts.lowest < 0.5 * _span(spec):
        reason = (
            "The gripper never moves. For a task that grasps, the topic of its command is missing "
            "or constant."
        )
        return Finding(SECTION, "gripper events", value, reason, "warn")
    return Finding(SECTION, "gripper events", value)


def _chatter(facts: GripperFacts) -> list[Finding]:
    if not facts.chatter:
        return []
    value = f"{len(facts.chatter)} of {len(facts.events_by_episode)} episodes"
    reason = (
        f"Opened and closed again within {CHATTER_S:g} s: a noisy button or threshold. Use a "
        f"threshold with hysteresis. In: {', '.join(facts.chatter[:LISTED])}."
    )
    return [Finding(SECTION, "gripper chatter", value, reason, "warn")]


def _middle(facts: GripperFacts) -> Finding:
    value = f"{100 * facts.middle_share:.0f} % of the steps"
    if facts.middle_share <= MIDDLE_WARNING:
        return Finding(SECTION, "gripper between", value, "Neither open nor closed.")
    reason = (
        "Neither open nor closed. OpenVLA's own data is made binary before training; a measured "
        "width that rests on an object is no command. Record the command, or threshold it."
    )
    return Finding(SECTION, "gripper between", value, reason, "warn")


def _span(spec: ActionSpec) -> float:
    assert spec.gripper_open is not None and spec.gripper_closed is not None
    return abs(spec.gripper_open - spec.gripper_closed)


def _correlation(
    openings: Sequence[np.ndarray], states: Sequence[np.ndarray | None]
) -> float | None:
    pairs = [(x, y) for x, y in zip(openings, states, strict=True) if y is not None]
    if not pairs:
        return None
    x = np.concatenate([x for x, _ in pairs])
    y = np.concatenate([y for _, y in pairs])
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
