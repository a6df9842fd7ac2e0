"""Drives another node's lifecycle, with a deadline and a check that it is still alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node

from openvla_ros.errors import OpenVLAError

POLL_S = 0.05
RENEW_S = 10.0  # a dead node of the same name can hide the service from a client for good
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}


class LifecycleError(OpenVLAError):
    """A lifecycle transition was refused or not answered in time."""


class LifecycleClient:
    """Calls `change_state` of one node. Something else must spin the node given here."""

    def __init__(self, node: Node, target: str) -> None:
        """Create the client; `target` is the name of the lifecycle node."""
        self._node = node
        self._target = target
        self._client: Any = None
        self._renew_at = 0.0

    def change(
        self, transition: str, timeout_s: float, check: Callable[[], None] = lambda: None
    ) -> None:
        """Return when the node has made a transition.

        Args:
            transition: A key of `TRANSITIONS`.
            timeout_s: For the node to appear and answer.
            check: Called while waiting; may raise to stop.

        Raises:
            LifecycleError: The node did not appear, did not answer, or refused.
        """
        deadline = time.monotonic() + timeout_s
        self._wait(self._is_ready, deadline, check, f"{self._target} to appear")
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        future: Any = self._client.call_async(request)
        self._wait(future.done, deadline, check, f"{self._target} to {transition}")
        if not future.result().success:
            raise LifecycleError(f"{self._target} refused to {transition}.")

    def _is_ready(self) -> bool:
        """Return whether the service is there; looks with a new client from time to time."""
        if self._client is not None and self._client.service_is_ready():
            return True
        if time.monotonic() > self._renew_at:
            if self._client is not None:
                self._node.destroy_client(self._client)
            self._client = self._node.create_client(ChangeState, f"/{self._target}/change_state")
            self._renew_at = time.monotonic() + RENEW_S
        return False

    def _wait(
        self,
        is_done: Callable[[], bool],
        deadline: float,
        check: Callable[[], None],
        what: str,
    ) -> None:
        begin = time.monotonic()
        while not is_done():
            check()
            if time.monotonic() > deadline:
                waited = time.monotonic() - begin
                raise LifecycleError(f"Waited {waited:.0f} s for {what}, in vain.")
            time.sleep(POLL_S)
