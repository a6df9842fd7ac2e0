"""A policy that always answers the same action: the whole node runs without torch or a checkpoint.

It can also fail on purpose, in each way a real policy fails, so that the failures can be tested.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from openvla_ros.errors import InstructionError
from openvla_ros.types import PRIMARY, ActionSpec, Observation, Policy, PolicyInfo, Prediction

UNNORM_KEY = "mock"
_SOURCE = "openvla_ros.mock_policy: the mock defines its own actions"

#: The mock's steps are metres and radians in base axes, five per second, like BridgeData's.
ACTION_SPEC = ActionSpec(
    unnorm_key=UNNORM_KEY,
    robot="mock",
    kind="eef_delta",
    translation_frame="base",
    rotation_frame="base",
    rotation_form="euler_xyz",
    translation_unit_m=1.0,
    rotation_unit_rad=1.0,
    action_hz=5.0,
    gripper_open=1.0,
    gripper_closed=0.0,
    sources={"action_hz": _SOURCE, "gripper_open": _SOURCE},
)


class MockPolicy(Policy):
    """Answers one constant action after a given time.

    A fault strikes every frame that a camera took (stamp_ns > 0); the trial runs at configure, on a
    made-up frame, get through.

    Attributes:
        fault: "none"; "nan": the action holds NaN; "short": one number is missing; "exception":
            raises; "oom": raises as a full GPU does; "hang": never answers until `release`;
            "invalid": the first id lies outside the action range. May be changed at any time.
    """

    def __init__(
        self, action: Sequence[float], *, latency_s: float = 0.0, fault: str = "none"
    ) -> None:
        self.fault = fault
        self._action = np.array(action, dtype=np.float64)
        self._latency_s = latency_s
        self._released = threading.Event()

    @property
    def info(self) -> PolicyInfo:
        """A mock, and nothing else."""
        return PolicyInfo(checkpoint="mock", unnorm_key=UNNORM_KEY)

    @property
    def action_spec(self) -> ActionSpec:
        """Metres, radians, base axes, 5 Hz."""
        return ACTION_SPEC

    def predict(self, observation: Observation) -> Prediction:
        """Return the constant action, late or broken as it was asked to be.

        Raises:
            InstructionError: The instruction is empty.
            RuntimeError: `fault` is "exception".
            MemoryError: `fault` is "oom".
        """
        if not observation.instruction:
            raise InstructionError("the instruction is empty")
        fault = self.fault if observation.stamp_ns > 0 else "none"
        if fault == "hang":
            self._released.wait()
        elif self._latency_s > 0.0:
            self._released.wait(self._latency_s)
        if fault == "exception":
            raise RuntimeError("mock_fault is 'exception'")
        if fault == "oom":
            raise MemoryError("mock_fault is 'oom': pretended to be out of GPU memory")
        return self._answer(observation, fault)

    def view(self, image: np.ndarray) -> np.ndarray:
        """Return the image itself: a mock does nothing with it."""
        return image

    def self_test(self) -> None:
        """Return: a mock does not claim to look at its image."""

    def release(self) -> None:
        """Let a prediction that hangs or waits finish, and all later ones at once."""
        self._released.set()

    def _answer(self, observation: Observation, fault: str) -> Prediction:
        action = self._action.copy()
        if fault == "nan":
            action[0] = np.nan
        elif fault == "short":
            action = action[:-1]
        # Same order as OpenVLA's bins: the last ids of a vocabulary of 32000, counted downwards.
        bins = np.round((np.clip(np.nan_to_num(action), -1.0, 1.0) + 1.0) * 127.0).astype(int)
        token_ids = (31999 - bins).tolist()
        if fault == "invalid":
            token_ids[0] = 2
        image = observation.images[PRIMARY]
        return Prediction(
            actions=action[None],
            normalized_actions=np.clip(action, -1.0, 1.0)[None],
            token_ids=token_ids,
            unnorm_key=UNNORM_KEY,
            prompt=f"mock, {image.shape[1]}x{image.shape[0]}: {observation.instruction}",
            invalid_dims=(0,) if fault == "invalid" else (),
            timings={"total_ms": self._latency_s * 1000.0},
            passes=len(token_ids),
        )
