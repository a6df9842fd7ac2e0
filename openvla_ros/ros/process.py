"""Runs the node as a process: threads, signals, and a zero twist as the last word.

rclpy's own signal handlers would close ROS first, so that nothing could be published any more. Here
SIGINT, SIGTERM and SIGHUP only set a flag; the node is then shut down while ROS still works.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import MultiThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from openvla_ros.errors import OpenVLAError

# change_state while it loads, ~/predict_once while it waits, the stream, the images, all the rest.
EXECUTOR_THREADS = 5
POLL_S = 0.1  # a signal is noticed after at most so long
# How long the policy's thread may keep the interpreter while others wait. Python's default of 5 ms,
# and a thread that computes without pause, delay the twist towards the 0.1 s at which MoveIt Servo
# stops.
SWITCH_INTERVAL_S = 0.001
EXIT_HUNG = 3
_M_ARENA_MAX = -8  # of malloc.h


def run(make_node: Callable[[], Any], args: list[str] | None, program: str = "openvla_node") -> int:
    """Spin the node until a signal or until it gives up; return the exit code.

    0 after SIGINT, SIGTERM or SIGHUP, 1 for unusable parameters, 3 when the policy hangs.
    """
    _share_one_heap()
    asked_to_stop = threading.Event()
    stop_signals = _stop_signals()
    for number in stop_signals:
        signal.signal(number, lambda *_: asked_to_stop.set())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make_node()
    except (ParameterException, OpenVLAError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = MultiThreadedExecutor(num_threads=EXECUTOR_THREADS)
    executor.add_node(node)
    try:
        while not asked_to_stop.is_set() and not node.fatal and rclpy.ok():
            _spin_once(executor, node)
    finally:
        code = _shut_down(executor, node)
        # A signal to the whole group, as of systemd, is repeated by `ros2 launch`: the second one
        # would end the interpreter while it cleans up, and an orderly end look like a crash.
        for number in stop_signals:
            signal.signal(number, signal.SIG_IGN)
    return code


def _share_one_heap() -> None:
    """Have all threads allocate from one heap, where the C library is glibc.

    By default each has its own, and whatever thread happens to free an image of 0.9 MB leaves a
    hole in another's: memory grows. They wait for the interpreter far longer than for this heap.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _stop_signals() -> tuple[signal.Signals, ...]:
    """What ends the node: SIGHUP too (a closed terminal, a lost ssh), unless under nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def _spin_once(executor: MultiThreadedExecutor, node: Any) -> None:
    try:
        executor.spin_once(timeout_sec=POLL_S)
    except Exception as error:  # an arm may be moving: stop it, and stay to publish zeros
        node.get_logger().error(traceback.format_exc())
        node.stop_for(f"a callback failed: {error!r}")


def _shut_down(executor: MultiThreadedExecutor, node: Any) -> int:
    code = 0
    if node.fatal:
        node.get_logger().fatal(f"giving up: {node.fatal}")
        code = EXIT_HUNG
    try:
        node.stop_streaming()  # first, and in every state: no transition may get in between
        node.trigger_shutdown()
    except Exception as error:  # in the middle of a transition, e.g. while a model loads
        node.get_logger().warning(f"no orderly shutdown: {error}")
    if node.is_policy_stuck:
        # A thread is inside the model and cannot be ended; waiting for it could take minutes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # First the callbacks that rclpy leaves running in its thread pool: they would find the executor
    # shut down ("cannot use Destroyable"), and then the node destroyed.
    pool = getattr(executor, "_executor", None)
    if pool is not None:
        pool.shutdown(wait=True)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return code
