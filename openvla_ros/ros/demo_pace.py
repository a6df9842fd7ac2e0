"""How fast a demo in the cell goes: the arm shall do the same on a machine that is too slow.

The node streams twists by the machine's clock, and the cell follows them in simulated time. Where
that runs at a fraction of the pace, an action would move the arm by that fraction only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RATE_HZ = 5.0  # steps per second of the recordings in the cell, as of BridgeData
CAMERA_S = 0.1  # simulated, between two pictures
ACTION_S = 1.0 / RATE_HZ
PROMPT_S = 0.15  # simulated, from picture to answer: what the arm does meanwhile does not matter
IN_TIME = 0.9  # a real-time factor above this counts as 1
MOST_SCALE = 2.0  # the upper limit of the node parameters


@dataclass(frozen=True)
class Pace:
    """What the node is told.

    Attributes:
        parameters: Of the node.
        step_share: Which share of its displacement an action moves the arm by.
        words: For the screen.
    """

    parameters: dict[str, Any]
    step_share: float
    words: str


def choose_pace(latency_s: float, real_time_factor: float) -> Pace:
    """Return the pace for a machine.

    Slow simulation: actions are scaled up by as much as they are cut short, and come less often. A
    slow policy: it answers to how the arm stood before its last action, so that it gets the time to
    look again after every one.

    Args:
        latency_s: From picture to answer, by the machine's clock.
        real_time_factor: Simulated seconds per second.
    """
    factor = 1.0 if real_time_factor >= IN_TIME else max(0.01, real_time_factor)
    scale = min(MOST_SCALE, 1.0 / factor)
    rate_hz, mode = RATE_HZ / scale, "stretch"
    words = f"One answer takes {latency_s:.2f} s, real-time factor {real_time_factor:.2f}"
    if latency_s * factor > PROMPT_S:
        mode = "exact"
        rate_hz = min(rate_hz, max(0.1, 1.0 / (latency_s + ACTION_S + CAMERA_S / factor)))
        words += ": the arm moves, stops and looks again"
    parameters = {
        "policy_rate": rate_hz,
        "linear_scale": scale,
        "angular_scale": scale,
        "twist_mode": mode,
    }
    return Pace(parameters, min(1.0, scale * factor), f"{words}; {rate_hz:.2g} actions a second.")
