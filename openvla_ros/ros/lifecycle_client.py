"""Drives another node's lifecycle, with a deadline and a check that it is still alive."""

from __future__ import annotations

from collections.abc import Callable

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node

from openvla_ros.errors import OpenVLAError
from openvla_ros.ros.service_client import ServiceClient, ServiceError

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
        self._target = target
        self._service = ServiceClient(node, ChangeState, f"/{target}/change_state")

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
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        try:
            answer = self._service.call(request, timeout_s, check)
        except ServiceError as error:
            raise LifecycleError(f"{self._target} did not {transition}: {error}") from error
        if not answer.success:
            raise LifecycleError(f"{self._target} refused to {transition}.")
