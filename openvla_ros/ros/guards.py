"""What breaks in a callback stops the arm and is logged; it never ends the process mid-motion."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

Transition = Callable[[Any, LifecycleState], TransitionCallbackReturn]


def guarded_transition(callback: Transition) -> Transition:
    """Log what a transition raises, and answer ERROR, which leads to on_error.

    rclpy answers ERROR too, but says nothing about the cause.
    """

    @functools.wraps(callback)
    def guarded(node: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return callback(node, state)
        except Exception:
            node.get_logger().error(f"{callback.__name__} failed:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR

    return guarded


def guarded_callback(node: Any, callback: Callable[..., None]) -> Callable[..., None]:
    """Return a callback that stops the arm (`node.stop_for`) when the given one raises."""

    @functools.wraps(callback)
    def guarded(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            node.get_logger().error(f"{callback.__name__} failed:\n{traceback.format_exc()}")
            node.stop_for(f"{callback.__name__} failed: {error!r}")

    return guarded


def refuse_wrong_transitions(node: Any) -> None:
    """Make `node` answer an impossible transition with success = false.

    rclpy lets the error of its state machine out of the service callback, which ends the process.
    """
    service = node._service_change_state  # the mixin offers no other way to it
    change_state = service.callback

    def answer(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except Exception as error:
            node.get_logger().warning(f"transition refused: {error}")
            response.success = False
            return response

    service.callback = answer
