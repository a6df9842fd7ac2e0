"""The services with which an operator starts, stops and tries the node, from rqt or a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from openvla_ros.ros.session import Session

PREDICT_ONCE_TIMEOUT_S = 30.0
_NOT_ACTIVE = "the node is not active: configure and activate it first."


class OperatorServices:
    """~/start, ~/stop, ~/reset, ~/set_motion_enabled and ~/predict_once of a node."""

    def __init__(
        self, node: Node, session: Callable[[], Session | None], slow_group: CallbackGroup
    ) -> None:
        """Offer the services.

        Args:
            node: Has the parameter `motion_enabled`.
            session: Returns the current session, or None.
            slow_group: For ~/predict_once, which waits for an answer.
        """
        self._node = node
        self._session = session
        quick_group = MutuallyExclusiveCallbackGroup()  # ~/stop never waits for anything slow
        for name, answer in (("start", self._start), ("stop", self._stop), ("reset", self._reset)):
            node.create_service(Trigger, f"~/{name}", answer, callback_group=quick_group)
        node.create_service(
            SetBool, "~/set_motion_enabled", self._set_motion_enabled, callback_group=quick_group
        )
        node.create_service(
            Trigger, "~/predict_once", self._predict_once, callback_group=slow_group
        )

    def _start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        session = self._session()
        if session is None or not session.is_active:
            response.message = _NOT_ACTIVE
            return response
        response.message = session.release()
        response.success = not response.message
        return response

    def _stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        session = self._session()
        if session is None or not session.is_active:
            response.success, response.message = True, "the node is not active: nothing moves."
            return response
        session.hold()
        response.success, response.message = True, "stopped; ~/start goes on."
        return response

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        session = self._session()
        response.message = "" if session is None else session.reset()
        response.success = not response.message
        return response

    def _set_motion_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        # Through the parameter, so that both always agree and are checked in one place.
        wanted = Parameter("motion_enabled", Parameter.Type.BOOL, request.data)
        result = self._node.set_parameters([wanted])[0]
        response.success, response.message = result.successful, result.reason
        return response

    def _predict_once(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        session = self._session()
        if session is None or not session.is_active:
            response.message = _NOT_ACTIVE
            return response
        response.success, response.message = session.predict_once(PREDICT_ONCE_TIMEOUT_S)
        return response
