#!/usr/bin/env python3
"""Measure openvla_node on one machine and camera and robot on another, as two network namespaces.

    sudo -E env "PATH=$PATH" python test/two_machines.py --seconds 15

Each case is one line of a Markdown table: the camera stream that reaches the policy, the age of an
image at the policy, the age of a twist at the robot. The namespaces share clock and kernel, not
memory: everything goes through UDP over one virtual cable, whose rate is limited. Real
cables add latency, loss, and clocks that disagree. Needs root, iproute2, and a kernel with the tbf
queue. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "test" / "reference" / "images" / "img1_640x480.png"
GPU, ROBOT, ROUTER = "openvla_gpu", "openvla_robot", "openvla_router"
ADDRESSES = {GPU: "10.77.1.2", ROBOT: "10.77.2.2"}
DEVICE = "net"
PRIVATE_MEMORY = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
CAMERA_HZ = 30.0
JPEG_QUALITY = 90
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Case:
    """One cable and what goes over it."""

    rate: str
    transport: str = "compressed"
    profile: str = "images"  # config/fastdds_images.xml, or Fast DDS's default
    is_pulled: bool = False
    is_routed: bool = False  # no multicast gets through
    static_peers: bool = False

    @property
    def name(self) -> str:
        """What is special about the cable."""
        words = [self.rate]
        words += ["pulled for 3 s"] * self.is_pulled
        words += ["routed"] * self.is_routed
        words += ["ROS_STATIC_PEERS"] * self.static_peers
        return ", ".join(words)


CASES = (
    Case("1gbit", "raw"),
    Case("1gbit", "raw", "default"),
    Case("1gbit"),
    Case("100mbit", "raw"),
    Case("100mbit"),
    Case("20mbit"),
    Case("1gbit", is_pulled=True),
    Case("1gbit", is_routed=True),
    Case("1gbit", is_routed=True, static_peers=True),
)
PARAMETERS = {
    "backend": "mock",
    "mock_latency_s": "0.15",
    "policy_rate": "5.0",
    "base_frame": "base_link",
    "motion_enabled": "true",
    "require_controller": "false",
    "limits.linear_speed": "0.005",
}


def main() -> int:
    """Run every case, or, in a child process, the robot's side of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="measured time of each case")
    parser.add_argument("--robot", choices=["raw", "compressed"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.robot:
        print(json.dumps(RobotSide(given.robot).measure(given.seconds)))
        return 0
    print("| cable | images | profile | images/s | image age p50 / p99 (ms) | twists/s "
          "| twist age p50 / p99 / max (ms) | longest gap (ms) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        print(row(case, run_case(case, given.seconds)), flush=True)
    return 0


def row(case: Case, found: dict[str, Any]) -> str:
    begin = f"| {case.name} | {case.transport} | {case.profile} |"
    if "error" in found:
        return f"{begin} {found['error']} | | | | |"
    ages = " / ".join(f"{a:.0f}" for a in found["image_age_ms"])
    twist_ages = " / ".join(f"{a:.1f}" for a in found["twist_age_ms"])
    return (
        f"{begin} {found['image_rate']:.1f} | {ages} "
        f"| {found['twist_rate']:.1f} | {twist_ages} | {found['longest_gap_ms']:.0f} |"
    )


# Two machines ------------------------------------------------------------------------------------


def run_case(case: Case, seconds: float) -> dict[str, Any]:
    """Return what the robot's side measured."""
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET", "ROS_DOMAIN_ID": "42"}
    if case.static_peers:
        environment["ROS_STATIC_PEERS"] = ";".join(ADDRESSES.values())
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        environment.pop(name, None)
        if case.profile == "images":
            environment[name] = str(ROOT / "config" / "fastdds_images.xml")
    given = [f"{k}:={v}" for k, v in {**PARAMETERS, "image_transport": case.transport}.items()]
    node = [sys.executable, "-m", "openvla_ros.ros.node", "--ros-args"]
    node += [word for one in given for word in ("-p", one)]
    robot = [sys.executable, __file__, "--robot", case.transport, "--seconds", str(seconds)]
    with cable(case), started(GPU, node, environment), started(ROBOT, robot, environment) as side:
        if case.is_pulled:
            pull_when_it_moves(side)
        try:
            out, error = side.communicate(timeout=seconds + 2 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            return {"error": "no answer"}
    if side.returncode != 0:
        return {"error": error.strip().splitlines()[-1][:200]}
    return dict(json.loads(out.splitlines()[-1]))


@contextmanager
def cable(case: Case) -> Iterator[None]:
    """Two namespaces joined by one cable, or by a router between two, for the time of the block."""
    try:
        for space in (GPU, ROBOT):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        if case.is_routed:
            ip("netns", "add", ROUTER)
            for space in (GPU, ROBOT):
                connect(space, ROUTER, f"to_{space[-5:]}", ADDRESSES[space][:-1] + "1", case.rate)
                ip("-n", space, "route", "add", "default", "via", ADDRESSES[space][:-1] + "1")
            run("ip", "netns", "exec", ROUTER, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        else:
            connect(GPU, ROBOT, DEVICE, "10.77.1.3", case.rate)
            for space in (GPU, ROBOT):  # as every machine has one; multicast leaves through it
                ip("-n", space, "route", "add", "default", "dev", DEVICE)
        yield
    finally:
        for space in (GPU, ROBOT, ROUTER):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", space)


def connect(space: str, other: str, device: str, address: str, rate: str) -> None:
    """Lay a cable from the device `net` of one namespace to another's, limited both ways."""
    ip("link", "add", DEVICE, "netns", space, "type", "veth", "peer", device, "netns", other)
    ends = ((space, DEVICE, ADDRESSES[space]), (other, device, address))
    for end, name, own in ends:
        ip("-n", end, "address", "add", f"{own}/24", "dev", name)
        ip("-n", end, "link", "set", name, "up")
        limit = ["root", "tbf", "rate", rate, "burst", "256k", "latency", "100ms"]
        run("tc", "-n", end, "qdisc", "add", "dev", name, *limit)


def ip(*words: str) -> None:
    run("ip", *words)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def started(
    space: str, command: list[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A process in a namespace; ended with the block."""
    process = subprocess.Popen(
        # Machines do not share memory: Fast DDS would find the other through /dev/shm.
        ["ip", "netns", "exec", space, "sh", "-c", PRIVATE_MEMORY, "sh", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if space == ROBOT else subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pull_when_it_moves(side: subprocess.Popen[str]) -> None:
    """Pull the cable 3 s after the robot's side began to measure; put it back 3 s later."""
    assert side.stdout is not None
    if side.stdout.readline().strip() != "measuring":
        return  # it has said why
    time.sleep(3.0)
    ip("-n", ROBOT, "link", "set", DEVICE, "down")
    time.sleep(3.0)
    ip("-n", ROBOT, "link", "set", DEVICE, "up")
    ip("-n", ROBOT, "route", "replace", "default", "dev", DEVICE)


# The robot's side --------------------------------------------------------------------------------


class RobotSide:
    """Camera, operator and robot in one process, with a notebook."""

    def __init__(self, transport: str) -> None:
        """Join ROS; `transport` is raw or compressed."""
        import rclpy
        from geometry_msgs.msg import TwistStamped
        from openvla_ros.msg import VLAAction, VLAStatus
        from rclpy.node import Node
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import String

        from openvla_ros.ros import qos

        rclpy.init()
        self._node = Node("robot_side")
        self._spin_once = lambda: rclpy.spin_once(self._node, timeout_sec=0.005)
        picture = cv2.imread(str(PICTURE))
        if transport == "raw":
            self._image: Any = Image(height=480, width=640, encoding="bgr8", step=1920)
            self._image.data = np.ascontiguousarray(picture).tobytes()
        else:
            _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            self._image = CompressedImage(format="jpeg", data=jpeg.tobytes())
        topic = "image" if transport == "raw" else "image/compressed"
        self._camera = self._node.create_publisher(
            type(self._image), topic, qos_profile_sensor_data
        )
        self._operator = self._node.create_publisher(String, "instruction", 1)
        self._twists: list[tuple[int, int, bool]] = []  # received, stamp (ns), moving
        self._ages_ns: list[int] = []
        self._status: Any = None
        name = "/openvla_node"
        self._node.create_subscription(TwistStamped, f"{name}/twist_cmd", self._on_twist, 10)
        self._node.create_subscription(VLAAction, f"{name}/action", self._on_action, 10)
        self._node.create_subscription(VLAStatus, f"{name}/status", self._on_status, qos.LATCHED)
        self._node.create_timer(1.0 / CAMERA_HZ, self._publish_image)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _publish_image(self) -> None:
        self._image.header.stamp = self._node.get_clock().now().to_msg()
        self._camera.publish(self._image)

    def _on_twist(self, message: Any) -> None:
        is_moving = bool(message.twist.linear.x)
        self._twists.append((self._now_ns(), nanoseconds(message.header.stamp), is_moving))

    def _on_action(self, message: Any) -> None:
        self._ages_ns.append(
            nanoseconds(message.image_received) - nanoseconds(message.header.stamp)
        )

    def _on_status(self, message: Any) -> None:
        self._status = message

    def _until(self, is_true: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_true():
            if time.monotonic() > deadline:
                raise SystemExit(f"never: {what}")
            self._spin_once()

    def _change(self, transition: int) -> None:
        from lifecycle_msgs.srv import ChangeState

        client = self._node.create_client(ChangeState, "/openvla_node/change_state")
        self._until(client.service_is_ready, "the node's services")
        request = ChangeState.Request()
        request.transition.id = transition
        answer = client.call_async(request)
        self._until(answer.done, "a transition")
        if not answer.result().success:
            raise SystemExit(f"refused: {self._status.detail if self._status else 'no status'}")

    def measure(self, seconds: float) -> dict[str, Any]:
        """Make the arm move, then return ages (ms), rates and gaps of the given time."""
        from std_msgs.msg import String

        for transition in (1, 3):  # configure, activate
            self._change(transition)
        self._until(self._operator.get_subscription_count, "a listener to instructions")
        self._operator.publish(String(data="pick up the cup"))
        self._until(lambda: self._twists and self._twists[-1][2], "a moving twist")
        self._twists.clear()
        self._ages_ns.clear()
        print("measuring", flush=True)
        first = self._status.frames_received
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._spin_once()
        received = np.array([t[0] for t in self._twists])
        ages = np.array([t[0] - t[1] for t in self._twists]) / 1e6
        return {
            "image_rate": (self._status.frames_received - first) / seconds,
            "image_age_ms": np.percentile(np.array(self._ages_ns) / 1e6, [50, 99]).tolist(),
            "twist_rate": len(ages) / seconds,
            "twist_age_ms": [*np.percentile(ages, [50, 99]).tolist(), float(ages.max())],
            "longest_gap_ms": float(np.diff(received).max()) / 1e6,
        }


def nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


if __name__ == "__main__":
    raise SystemExit(main())
