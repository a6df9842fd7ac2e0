"""What every test shares: an isolated ROS, modest threads, and where reference data lies."""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _own_domain() -> int:
    """Return a ROS domain that no other test process of this machine has, until this one ends.

    Two of them in one domain see each other's nodes, and wait for services until they give up.
    """
    for domain in range(20, 100):  # Linux allows 0-101
        name = f"openvla_ros_test_domain_{os.getuid()}_{domain}"
        lock = os.open(Path(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return domain  # the lock stays open, and with it the domain is ours
    raise pytest.UsageError("80 test processes hold every ROS domain; let some of them end.")


# Set before anything imports rclpy or torch, and inherited by the processes that tests start.
#
# A test must never reach a robot on the same network, nor the tests of another process.
os.environ["ROS_DOMAIN_ID"] = str(_own_domain())
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if os.environ.get("ROS_DISTRO") == "humble":  # which does not know the variable above
    os.environ["ROS_LOCALHOST_ONLY"] = "1"
# Without this profile best-effort VGA frames do not fit the transport (see the file).
PROFILE = str(ROOT / "config" / "fastdds_images.xml")
os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = PROFILE
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = PROFILE
# The golden vectors are float32 on a CPU; where there is a GPU, `auto` would mean it, and bfloat16.
# Tests marked `gpu` ask for it: OPENVLA_ROS_TEST_GPU=1 python -m pytest -m gpu
if os.environ.get("OPENVLA_ROS_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Rounded weights of tests stay out of the user's cache; tests about it name another folder.
os.environ["OPENVLA_ROS_CACHE"] = "off"
# Tiny models are slower on many threads than on few, and tests share the machine.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))


def missing_ros() -> str | None:
    """Return why tests marked `ros` cannot run here, or None when they can."""
    for name in ("rclpy", "openvla_ros.msg"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"needs ROS ({error}); run `make setup`, then `source scripts/env.bash`"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs ROS where there is none; fail instead under OPENVLA_ROS_REQUIRE_ROS=1."""
    needs_ros = [item for item in items if item.get_closest_marker("ros")]
    reason = missing_ros() if needs_ros else None
    if reason is None:
        return
    if os.environ.get("OPENVLA_ROS_REQUIRE_ROS") == "1":
        raise pytest.UsageError(f"{len(needs_ros)} tests cannot run: {reason}")
    for item in needs_ros:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Golden vectors of this repository."""
    return ROOT / "test" / "reference"


@pytest.fixture(scope="session")
def reference_checkpoints(reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the golden checkpoints, each complete with the packaged tokenizer."""
    out = tmp_path_factory.mktemp("checkpoints")
    tokenizer = ROOT / "openvla_ros" / "resources" / "tokenizer"
    for name in ("A_fused", "B_siglip_v01"):
        shutil.copytree(reference_dir / "checkpoints" / name, out / name)
        shutil.copytree(tokenizer, out / name, dirs_exist_ok=True)
    return out


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded random-weight checkpoint, as `make demo` builds it."""
    from openvla_ros.model.random_weights import build_checkpoint

    return build_checkpoint("tiny", tmp_path_factory.mktemp("tiny") / "checkpoint")
