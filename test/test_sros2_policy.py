"""The example policy for SROS 2 allows what the nodes of this package do, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "sros2" / "openvla.policy.xml"
MAKE_KEYSTORE = ROOT / "sros2" / "make_keystore.bash"

# element → names of its children, and of its attributes. Source: ros2/sros2 0.13, policy.xsd 0.2.0.
STRUCTURE: dict[str, tuple[set[str], set[str]]] = {
    "policy": ({"enclaves"}, {"version"}),
    "enclaves": ({"enclave"}, set()),
    "enclave": ({"profiles"}, {"path"}),
    "profiles": ({"profile"}, set()),
    "profile": ({"topics", "services", "actions"}, {"ns", "node"}),
    "topics": ({"topic"}, {"publish", "subscribe"}),
    "services": ({"service"}, {"reply", "request"}),
    "actions": ({"action"}, {"call", "execute"}),
    "topic": (set(), set()),
    "service": (set(), set()),
    "action": (set(), set()),
}
RULES = ("publish", "subscribe", "reply", "request", "execute", "call")
PARAMETER_SERVICES = {
    "describe_parameters",
    "get_parameter_types",
    "get_parameters",
    "get_type_description",
    "list_parameters",
    "set_parameters",
    "set_parameters_atomically",
}
ALWAYS = {"publish": {"/parameter_events", "/rosout"}, "subscribe": {"/clock"}}

Rights = dict[str, set[str]]


def allowed(enclave: str) -> tuple[str, Rights]:
    """Return the node name of an enclave and, for every rule, the full names that it may use."""
    profile = ET.parse(POLICY).find(f"enclaves/enclave[@path='{enclave}']/profiles/profile")
    assert profile is not None, enclave
    node = f"{profile.attrib['ns'].rstrip('/')}/{profile.attrib['node']}"
    rights: Rights = {rule: set() for rule in RULES}
    for block in profile:
        for rule in block.attrib:
            rights[rule] |= {full_name(entry.text or "", node) for entry in block}
    return node, rights


def full_name(name: str, node: str) -> str:
    if name.startswith("/"):
        return name
    if name.startswith("~/"):
        return f"{node}/{name[2:]}"
    return f"{node.rpartition('/')[0]}/{name}"


def enclaves() -> list[str]:
    return [e.attrib["path"] for e in ET.parse(POLICY).findall("enclaves/enclave")]


# The file ----------------------------------------------------------------------------------------


def test_the_policy_has_the_form_of_version_0_2_0() -> None:
    root = ET.parse(POLICY).getroot()
    assert root.attrib == {"version": "0.2.0"}
    for element in root.iter():
        children, attributes = STRUCTURE[element.tag]
        assert {child.tag for child in element} <= children, element.tag
        assert set(element.attrib) <= attributes, element.tag
        assert bool(len(element)) == bool(children), f"<{element.tag}> {element.attrib}"
        if element.tag in ("topics", "services", "actions"):
            assert set(element.attrib.values()) == {"ALLOW"}, "nothing is denied by name"
            names = [child.text for child in element]
            assert names == sorted(set(names), key=names.index), "listed twice"
    assert len(set(enclaves())) == len(enclaves())


def test_no_comment_stands_where_ros2_security_looks_for_enclaves() -> None:
    """It takes every child of <enclaves> for one, and fails with "validate namespace"."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    children = ET.parse(POLICY, parser).getroot().find("enclaves")
    assert children is not None
    assert [child.tag for child in children] == ["enclave"] * len(children)


def test_the_policy_passes_the_schema_of_sros2() -> None:
    pytest.importorskip("lxml", reason="sros2 needs lxml; install the package ros-<distro>-sros2")
    found = importlib.util.find_spec("sros2")
    if found is None or found.origin is None:  # our folder of that name is no package
        pytest.skip("sros2 is not installed; install the package ros-<distro>-sros2")
    from sros2.policy import load_policy  # type: ignore[import-not-found]

    load_policy(POLICY)


def ros2_security_runs() -> bool:
    if shutil.which("ros2") is None:
        return False
    asked = subprocess.run(["ros2", "security", "--help"], capture_output=True, timeout=60)
    return asked.returncode == 0


def make_keystore(folder: Path, *policy: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(MAKE_KEYSTORE), str(folder), *map(str, policy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_keystore_holds_every_enclave_with_narrow_permissions(tmp_path: Path) -> None:
    if not ros2_security_runs():
        pytest.skip("needs `ros2 security`; install the package ros-<distro>-sros2")
    made = make_keystore(tmp_path / "keystore")
    assert made.returncode == 0, made.stderr
    key = tmp_path / "keystore/enclaves/openvla/node/key.pem"
    first = key.read_bytes()
    for enclave in enclaves():
        folder = tmp_path / "keystore/enclaves" / enclave.lstrip("/")
        permissions = (folder / "permissions.xml").read_text()
        assert f"<id>{os.environ['ROS_DOMAIN_ID']}</id>" in permissions
        assert "rt/*<" not in permissions
        assert (folder / "permissions.p7s").stat().st_mode & 0o077 == 0
    assert make_keystore(tmp_path / "keystore").returncode == 0
    assert key.read_bytes() == first, "a second run keeps the keys"


def test_a_keystore_without_ros2_security_says_what_to_install(tmp_path: Path) -> None:
    if ros2_security_runs():
        pytest.skip("`ros2 security` runs here")
    made = make_keystore(tmp_path / "keystore")
    assert made.returncode == 1
    assert "package sros2" in made.stderr
    assert not (tmp_path / "keystore").exists()


# The nodes ---------------------------------------------------------------------------------------


@contextmanager
def ros(*remaps: str) -> Iterator[None]:
    """ROS with names remapped, from here to the end of the block."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS; run `make setup`")
    rclpy.init(args=["--ros-args", *(word for remap in remaps for word in ("-r", remap))])
    yield
    rclpy.shutdown()


def used(node: Any) -> Rights:
    """What a node uses, by its own graph entry; the six topics and services of an action as one."""
    name, namespace = node.get_name(), node.get_namespace()

    def names(method: str) -> set[str]:
        return {found for found, _ in getattr(node, method)(name, namespace)}

    found: Rights = {
        "publish": names("get_publisher_names_and_types_by_node"),
        "subscribe": names("get_subscriber_names_and_types_by_node"),
        "reply": names("get_service_names_and_types_by_node"),
        "request": names("get_client_names_and_types_by_node"),
    }
    part = "/_action/"
    found["execute"] = {n.partition(part)[0] for n in found["reply"] if part in n}
    found["call"] = {n.partition(part)[0] for n in found["request"] if part in n}
    for rule in ("publish", "subscribe", "reply", "request"):
        found[rule] = {n for n in found[rule] if part not in n}
    return found


def assert_same(enclave: str, uses: Rights, *, optional: set[str] | None = None) -> None:
    """Compare name by name; `optional` names may be allowed though no node here uses them."""
    node, rights = allowed(enclave)
    for rule in RULES:
        expected = uses.get(rule, set()) | ALWAYS.get(rule, set())
        if rule == "reply":
            # Not every distribution has all of them (get_type_description: from Jazzy on).
            expected |= {f"{node}/{service}" for service in PARAMETER_SERVICES}
        missing, needless = expected - rights[rule], rights[rule] - expected - (optional or set())
        assert not missing, f"{POLICY.name}, {enclave}: add to {rule}: {sorted(missing)}"
        assert not needless, f"{POLICY.name}, {enclave}: strike from {rule}: {sorted(needless)}"


# Every choice of parameters that brings another topic.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"image_transport": "compressed"},
    {"output": "pose", "base_frame": "base_link"},
)
# With ee_pose_source tf, which needs tf2_ros; and the lens, while somebody looks at ~/debug/image.
SOMETIMES = {"/tf", "/tf_static", "/camera_info"}


def used_by_openvla_node() -> Rights:
    from rclpy.parameter import Parameter

    from openvla_ros.ros.node import OpenVLANode

    total: Rights = {}
    for variant in VARIANTS:
        with ros():
            values = {"backend": "mock", **variant}
            node = OpenVLANode(
                parameter_overrides=[Parameter(k, value=v) for k, v in values.items()]
            )
            node.trigger_configure()
            assert node.is_policy_stuck, f"not configured with {variant}"
            node.trigger_activate()
            for rule, names in used(node).items():
                total[rule] = total.get(rule, set()) | names
            node.trigger_shutdown()
            node.destroy_node()
    return total


@pytest.mark.ros
def test_openvla_node_may_do_what_it_does_and_no_more() -> None:
    assert_same("/openvla/node", used_by_openvla_node(), optional=SOMETIMES)


@pytest.mark.ros
def test_the_camera_may_do_what_it_does_and_no_more() -> None:
    with ros():
        from openvla_ros.ros.camera import CameraNode
        from openvla_ros.ros.frame_sources import open_frame_source

        node = CameraNode(open_frame_source(None, "", "", 1.0), 5.0)
        uses = used(node)
        node.destroy_node()
    assert_same("/openvla/camera", uses)


@pytest.mark.ros
def test_the_mock_robot_may_do_what_it_does_and_no_more() -> None:
    remaps = [f"{name}:=/openvla_node/{name}" for name in ("twist_cmd", "gripper_cmd")]
    with ros(*remaps):
        from openvla_ros.ros.mock_robot import MockRobotNode

        node = MockRobotNode("base_link")
        uses = used(node)
        node.destroy_node()
    assert_same("/openvla/robot", uses, optional={"/action_to_twist/twist_cmd"})


@pytest.mark.ros
def test_the_streamer_may_do_what_it_does_and_no_more() -> None:
    with ros():
        from rclpy.parameter import Parameter

        from openvla_ros.ros.action_to_twist import ActionToTwistNode

        node = ActionToTwistNode(parameter_overrides=[Parameter("base_frame", value="base_link")])
        uses = used(node)
        node.destroy_node()
    assert_same("/openvla/streamer", uses, optional=SOMETIMES)


@pytest.mark.ros
def test_a_viewer_sees_everything_and_can_do_nothing() -> None:
    with ros():
        from openvla_ros.ros.monitor import MonitorNode

        node = MonitorNode()
        monitor = used(node)
        node.destroy_node()
    _, rights = allowed("/openvla/viewer")
    assert monitor["subscribe"] <= rights["subscribe"]
    assert rights["publish"] == ALWAYS["publish"]
    assert not rights["request"] | rights["call"] | rights["execute"]
    _, node_rights = allowed("/openvla/node")
    seen = node_rights["publish"] | allowed("/openvla/streamer")[1]["publish"]
    seen -= {"/parameter_events"}
    assert seen | node_rights["subscribe"] <= rights["subscribe"]


def test_an_operator_may_use_everything_that_the_node_offers() -> None:
    _, node = allowed("/openvla/node")
    _, operator = allowed("/openvla/operator")
    _, streamer = allowed("/openvla/streamer")
    assert operator["request"] == node["reply"] | streamer["reply"]
    assert operator["call"] == node["execute"]
    by_hand = {"/instruction", "/openvla_node/enable", "/openvla_node/teleop_twist"}
    assert operator["publish"] == by_hand | ALWAYS["publish"]
    assert by_hand <= node["subscribe"]
    assert operator["subscribe"] == allowed("/openvla/viewer")[1]["subscribe"] | {
        "/parameter_events"
    }


def test_only_node_and_streamer_may_move_the_arm() -> None:
    movers = ("/openvla_node", "/action_to_twist")
    commands = {f"{mover}/{name}_cmd" for mover in movers for name in ("twist", "pose", "gripper")}
    for enclave in enclaves():
        node, rights = allowed(enclave)
        moved = rights["publish"] & commands
        assert all(command.startswith(f"{node}/") for command in moved), enclave
        assert not moved or node in movers, enclave
        assert not any("*" in name for name in rights["publish"] | rights["subscribe"]), enclave
