"""A policy drives the cell; what is recorded is what the expert would do in its place.

So it learns the way back from the places that it goes to by itself.
Source: Ross, Gordon and Bagnell, A Reduction of Imitation Learning and Structured Prediction to
No-Regret Online Learning (DAgger), AISTATS 2011.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np

from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import STEP_S, action_twist, expert_action
from openvla_ros.sim.recording.bags import RecordedStep, look, record_step
from openvla_ros.sim.recording.options import RecordingOptions
from openvla_ros.sim.recording.trajectories import MOST_STEPS, STEPS_AFTER, Trajectory
from openvla_ros.types import PRIMARY, Observation, Policy


def policy_trajectory(cell: SimCell, options: RecordingOptions, number: int) -> Trajectory:
    """Let the policy of `options` try one task.

    Args:
        cell: Its scene and task are replaced.
        options: Of the recording; `policy` is a checkpoint.
        number: Of the episode, from 0.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    policy = _loaded(options.policy)
    task = cell.reset(options.seed + number, options.kind_of(number))
    policy.begin_episode()
    steps: list[RecordedStep] = []
    steps_left, is_done = MOST_STEPS[task.kind], False
    while steps_left > 0:
        jpeg = look(cell, options)
        correct = expert_action(task, cell.state())
        steps.append(
            replace(record_step(cell, jpeg, task.target, correct, options), is_pushed=True)
        )
        bgr = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        assert bgr is not None, "the cell's own JPEG"
        picture = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        seen = Observation({PRIMARY: picture}, task.instruction, stamp_ns=len(steps))
        executed = np.asarray(policy.predict(seen).action, float)
        cell.step(action_twist(executed), executed[6], STEP_S)
        steps_left -= 1
        if not is_done and task.is_done(cell.state()):
            is_done, steps_left = True, STEPS_AFTER
    return Trajectory(task, steps, is_done)


@cache
def _loaded(checkpoint: str) -> Policy:
    from openvla_ros.policy import OpenVLAPolicy

    return OpenVLAPolicy.from_pretrained(checkpoint)
