"""The environment of a demo's processes: their own DDS domain, this machine only, big images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
FIRST_DOMAIN, DOMAINS = 20, 80  # below 102, where ports would leave the range Linux reserves


def demo_environment(current: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of the environment in which a demo disturbs nobody.

    What the user has set stays: domain, discovery range, Fast DDS profile.
    """
    environment = dict(current)
    environment.setdefault("ROS_DOMAIN_ID", str(FIRST_DOMAIN + os.getpid() % DOMAINS))
    if environment.get("ROS_DISTRO") == "humble":
        environment.setdefault("ROS_LOCALHOST_ONLY", "1")
    else:
        environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    environment.setdefault("RCUTILS_COLORIZED_OUTPUT", "0")
    if not any(environment.get(name) for name in PROFILE_VARIABLES):
        profile = find_fastdds_profile(environment)
        if profile is not None:
            environment.update(dict.fromkeys(PROFILE_VARIABLES, str(profile)))
    # Children find the same sources as this process, wherever they are started.
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    return environment


def find_fastdds_profile(environment: Mapping[str, str]) -> Path | None:
    """Return config/fastdds_images.xml of the checkout or of the installed package, if any."""
    folders = [Path(__file__).resolve().parents[2] / "config"]
    for prefix in environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        folders.append(Path(prefix) / "share" / "openvla_ros" / "config")
    return next(
        (f / "fastdds_images.xml" for f in folders if (f / "fastdds_images.xml").is_file()), None
    )
