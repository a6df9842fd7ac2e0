"""Calls a service of another process, with a deadline and a check that it is still alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from openvla_ros.errors import OpenVLAError

POLL_S = 0.05
RENEW_S = 10.0  # a dead node of the same name can hide the service from a client for good


class ServiceError(OpenVLAError):
    """A service did not appear, or did not answer in time."""


class ServiceClient:
    """Calls one service. Something else must spin the node given here."""

    def __init__(self, node: Node, kind: Any, name: str) -> None:
        """Look for nothing yet; `kind` is the class of the service, `name` its full name."""
        self._node = node
        self._kind = kind
        self._name = name
        self._client: Any = None
        self._renew_at = 0.0

    def call(self, request: Any, timeout_s: float, check: Callable[[], None] = lambda: None) -> Any:
        """Return the answer.

        Args:
            request: Of the service's kind.
            timeout_s: For the service to appear and answer.
            check: Called while waiting; may raise to stop.

        Raises:
            ServiceError: It did not appear, or did not answer.
        """
        deadline = time.monotonic() + timeout_s
        self._wait(self._is_ready, deadline, check, f"{self._name} to appear")
        future = self._client.call_async(request)
        self._wait(future.done, deadline, check, f"an answer of {self._name}")
        return future.result()

    def _is_ready(self) -> bool:
        """Return whether the service is there; looks with a new client from time to time."""
        if self._client is not None and self._client.service_is_ready():
            return True
        if time.monotonic() > self._renew_at:
            if self._client is not None:
                self._node.destroy_client(self._client)
            self._client = self._node.create_client(self._kind, self._name)
            self._renew_at = time.monotonic() + RENEW_S
        return False

    def _wait(
        self, is_done: Callable[[], bool], deadline: float, check: Callable[[], None], what: str
    ) -> None:
        begin = time.monotonic()
        while not is_done():
            check()
            if time.monotonic() > deadline:
                waited = time.monotonic() - begin
                raise ServiceError(f"Waited {waited:.0f} s for {what}, in vain.")
            time.sleep(POLL_S)
