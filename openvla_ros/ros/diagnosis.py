"""What `openvla-ros doctor` says about ROS 2 on this machine. Imports rclpy only to try it."""

from __future__ import annotations

import importlib
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from openvla_ros.ros.demo_environment import PROFILE_VARIABLES, find_fastdds_profile
from openvla_ros.types import Finding

SECTION = "ROS 2"
VGA_FRAME_BYTES = 640 * 480 * 3
NEEDED_FRAMES = 4  # of this size in flight; the default segment holds half of one


def ros_findings(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Return what was found, in the order a user fixes it."""
    environment = os.environ if environment is None else environment
    findings = [_distribution(environment), *_rclpy()]
    if findings[-1].level == "ok":
        findings += [_messages(), _cv_bridge(), fast_dds_finding(environment)]
    return [*findings, _domain(environment)]


def fast_dds_finding(environment: Mapping[str, str]) -> Finding:
    """Return whether the DDS in use can carry raw images between processes.

    Measured: with the default 0.5 MB shared-memory segment, 1 of 150 best-effort VGA frames
    arrived; with 32 MB, all of them.
    """
    name = "raw images"
    rmw = environment.get("RMW_IMPLEMENTATION", "")
    if rmw and "fastrtps" not in rmw:
        return Finding(SECTION, name, rmw, "not Fast DDS: its profile does not apply")
    set_by = next((v for v in PROFILE_VARIABLES if environment.get(v)), None)
    if set_by is None:
        profile = find_fastdds_profile(environment)
        advice = f"export {PROFILE_VARIABLES[0]}={profile}" if profile else "use compressed images"
        return Finding(
            SECTION,
            name,
            "no Fast DDS profile",
            f"VGA frames get lost between processes: {advice}",
            "warn",
        )
    path = Path(environment[set_by])
    try:
        size = largest_shared_memory_segment(path)
    except (OSError, ElementTree.ParseError) as error:
        return Finding(SECTION, name, str(path), f"{set_by} cannot be read: {error}", "problem")
    if size < NEEDED_FRAMES * VGA_FRAME_BYTES:
        return Finding(
            SECTION,
            name,
            f"{path}: segment of {size / 2**20:.1f} MiB",
            f"{NEEDED_FRAMES} VGA frames need {NEEDED_FRAMES * VGA_FRAME_BYTES / 2**20:.1f} MiB",
            "warn",
        )
    return Finding(SECTION, name, str(path), f"shared-memory segment of {size / 2**20:.0f} MiB")


def largest_shared_memory_segment(profile: Path) -> int:
    """Return the largest `segment_size` in a Fast DDS profile file, bytes; 0 when it sets none.

    Raises:
        OSError: Unreadable.
        ElementTree.ParseError: Not XML.
    """
    sizes = [
        int(element.text or 0)
        for element in ElementTree.parse(profile).iter()
        if element.tag.rsplit("}", 1)[-1] == "segment_size"
    ]
    return max(sizes, default=0)


def _distribution(environment: Mapping[str, str]) -> Finding:
    distribution = environment.get("ROS_DISTRO", "")
    if not distribution:
        return Finding(
            SECTION, "distribution", "not sourced", "source scripts/env.bash, or your ROS 2", "warn"
        )
    return Finding(SECTION, "distribution", distribution)


def _rclpy() -> list[Finding]:
    try:
        rclpy = importlib.import_module("rclpy")
        middleware = rclpy.get_rmw_implementation_identifier()
    except Exception as error:
        return [
            Finding(
                SECTION,
                "rclpy",
                "not importable",
                f"{type(error).__name__}: {error}. predict works without, the node not",
                "warn",
            )
        ]
    return [
        Finding(SECTION, "middleware", middleware),
        Finding(SECTION, "rclpy", "importable", str(Path(rclpy.__file__).parent)),
    ]


def _messages() -> Finding:
    try:
        messages = importlib.import_module("openvla_ros.msg")
    except ImportError as error:
        return Finding(
            SECTION,
            "openvla_ros.msg",
            "not built",
            f"{error}; run `make setup` or `colcon build`, then source the workspace",
            "problem",
        )
    return Finding(SECTION, "openvla_ros.msg", "built", str(Path(str(messages.__file__)).parent))


def _cv_bridge() -> Finding:
    try:
        importlib.import_module("cv_bridge")
    except Exception as error:
        reason = f"{type(error).__name__}: our own decoder gives the same pixels"
        return Finding(SECTION, "cv_bridge", "not used", reason)
    return Finding(SECTION, "cv_bridge", "importable")


def _domain(environment: Mapping[str, str]) -> Finding:
    domain = environment.get("ROS_DOMAIN_ID", "0 (default)")
    reach = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET (default)")
    if environment.get("ROS_LOCALHOST_ONLY") == "1":
        reach = "LOCALHOST"
    return Finding(SECTION, "domain", domain, f"discovery: {reach}")
