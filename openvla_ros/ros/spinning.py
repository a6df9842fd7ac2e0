"""Runs a simple node until Ctrl-C, SIGTERM or shutdown, and leaves without a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from openvla_ros.errors import OpenVLAError

try:  # the C layer raises its own error when the context dies inside a publish
    from rclpy._rclpy_pybind11 import RCLError
except ImportError:  # pragma: no cover - other rclpy versions keep it elsewhere
    RCLError = RuntimeError


def spin_until_shutdown(make_node: Callable[[], Node]) -> int:
    """Spin the node that `make_node` builds; return 0, or 1 when one of our errors ended it.

    rclpy must be initialised, with its own signal handlers. It is shut down afterwards, and the
    process is meant to end: SIGINT and SIGTERM are ignored from then on.
    """
    node: Node | None = None
    try:
        node = make_node()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        if rclpy.ok():
            raise
    except OpenVLAError as error:
        print(f"{node.get_name() if node else 'node'}: {error}", file=sys.stderr)
        return 1
    finally:
        # `ros2 launch` repeats a signal that the whole group got: the second one would end the
        # interpreter while it cleans up, and an orderly end look like a crash.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
