"""Layouts for rviz, rqt, PlotJuggler and Foxglove: whole, and about things that exist."""

from __future__ import annotations

import ast
import importlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="compares with a running node; run `make setup`")
from node_cell import NAME, Cell

pytestmark = pytest.mark.ros
LAYOUTS = Path(__file__).resolve().parents[1] / "config" / "layouts"
NUMBERS = (bool, int, float)

#: Topics of others: the pose of the robot, what `instruction` resolves to, and diagnostics.
FOREIGN = {
    "/ee_pose": "geometry_msgs/msg/PoseStamped",
    "/instruction": "std_msgs/msg/String",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    "/robot_description": "std_msgs/msg/String",
}

#: rviz display → the type it shows (rviz_default_plugins @ humble, plugins_description.xml).
RVIZ_DISPLAYS = {
    "rviz_default_plugins/Grid": None,
    "rviz_default_plugins/Axes": None,
    "rviz_default_plugins/TF": None,
    "rviz_default_plugins/RobotModel": "std_msgs/msg/String",
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/msg/MarkerArray",
    "rviz_default_plugins/Path": "nav_msgs/msg/Path",
    "rviz_default_plugins/Pose": "geometry_msgs/msg/PoseStamped",
    "rviz_default_plugins/TwistStamped": "geometry_msgs/msg/TwistStamped",
}
RVIZ_OTHERS = {
    "rviz_common/Displays",
    "rviz_common/Views",
    "rviz_common/Time",
    "rviz_default_plugins/Interact",
    "rviz_default_plugins/MoveCamera",
    "rviz_default_plugins/Measure",
    "rviz_default_plugins/Orbit",
}

#: Plugins by package/class, as each package's plugin.xml names them.
RQT_PLUGINS = {
    "rqt_image_view/ImageView",
    "rqt_plot/Plot",
    "rqt_runtime_monitor/RuntimeMonitor",
    "rqt_service_caller/ServiceCaller",
    "rqt_reconfigure/Param",
    "rqt_topic/TopicPlugin",
}

#: Panel types of Foxglove and of its open successor Lichtblick.
FOXGLOVE_PANELS = {
    "3D",
    "CallService",
    "DiagnosticSummary",
    "Image",
    "Plot",
    "Publish",
    "RawMessages",
    "StateTransitions",
}


@pytest.fixture(scope="module")
def interface() -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Topic → type of what the node publishes, and service → type."""
    with Cell(base_frame="base_link") as cell:
        assert cell.change("configure")  # the command topic depends on `output`
        name, space = cell.node.get_name(), cell.node.get_namespace()
        topics = cell.node.get_publisher_names_and_types_by_node(name, space)
        services = cell.node.get_service_names_and_types_by_node(name, space)
        yield (
            {topic: types[0] for topic, types in topics} | FOREIGN,
            {service: types[0] for service, types in services},
        )


def message_class(kind: str) -> Any:
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def field_type(topics: dict[str, str], path: str, separator: str) -> type:
    """Type of the value at `/topic<separator>field<separator>...`; fail when there is none."""
    owners = [t for t in topics if path == t or path.startswith(t + separator)]
    assert owners, f"{path}: no topic of the node, nor of {sorted(FOREIGN)}"
    topic = max(owners, key=len)
    value: Any = message_class(topics[topic])()
    for name in filter(None, path[len(topic) :].split(separator)):
        assert hasattr(value, name), f"{path}: {topics[topic]} has no field {name}"
        value = getattr(value, name)
    return type(value)


# rviz --------------------------------------------------------------------------------------------


def rviz() -> dict[str, Any]:
    return yaml.safe_load((LAYOUTS / "openvla.rviz").read_text(encoding="utf-8"))


def classes(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if tree.get("Class"):
            yield tree["Class"]
        for value in tree.values():
            yield from classes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from classes(value)


def test_rviz_knows_every_class() -> None:
    found = set(classes(rviz()))
    assert found <= RVIZ_DISPLAYS.keys() | RVIZ_OTHERS
    assert {"rviz_default_plugins/Image", "rviz_default_plugins/MarkerArray"} <= found


def test_every_rviz_display_gets_the_type_it_shows(interface: Any) -> None:
    topics, _ = interface
    shown = set()
    for display in rviz()["Visualization Manager"]["Displays"]:
        wanted = RVIZ_DISPLAYS[display["Class"]]
        if wanted is None:
            continue
        source = display.get("Topic") or display["Description Topic"]
        assert topics.get(source["Value"]) == wanted, f"{display['Name']}: {source['Value']}"
        shown.add(source["Value"])
    assert shown >= {f"{NAME}/debug/{name}" for name in ("image", "markers", "path")}


# rqt ---------------------------------------------------------------------------------------------


def perspective() -> dict[str, Any]:
    return json.loads((LAYOUTS / "openvla.perspective").read_text(encoding="utf-8"))


def setting(value: dict[str, str]) -> Any:
    """A value as rqt reads it back."""
    assert value["type"] == "repr"
    return ast.literal_eval(value["repr"])


def test_rqt_finds_settings_for_every_plugin_it_starts() -> None:
    manager = perspective()["groups"]["pluginmanager"]
    running = setting(manager["keys"]["running-plugins"])
    assert set(running) == RQT_PLUGINS
    expected = {
        f"plugin__{plugin.replace('/', '__')}__{number}"
        for plugin, numbers in running.items()
        for number in numbers
    }
    assert set(manager["groups"]) == expected


def test_rqt_plots_numbers_that_exist(interface: Any) -> None:
    topics, services = interface
    groups = perspective()["groups"]["pluginmanager"]["groups"]
    settings = {
        name: {k: setting(v) for k, v in group["groups"]["plugin"]["keys"].items()}
        for name, group in groups.items()
    }
    image = settings["plugin__rqt_image_view__ImageView__1"]["topic"]
    assert topics[image] == "sensor_msgs/msg/Image"
    plotted = [p for s in settings.values() for p in s.get("topics", [])]
    assert len(plotted) >= 6
    for path in plotted:
        assert issubclass(field_type(topics, path, "/"), NUMBERS), path
    stop = settings["plugin__rqt_service_caller__ServiceCaller__1"]["current_service_name"]
    assert services[stop] == "std_srvs/srv/Trigger"


# PlotJuggler -------------------------------------------------------------------------------------


def plotjuggler() -> ET.Element:
    return ET.parse(LAYOUTS / "plotjuggler_layout.xml").getroot()


def test_plotjuggler_splits_as_often_as_it_has_plots() -> None:
    """It reads one size per plot, and stops at the first that is not there."""
    splitters = list(plotjuggler().iter("DockSplitter"))
    assert splitters
    for splitter in splitters:
        count = int(splitter.attrib["count"])
        sizes = [float(size) for size in splitter.attrib["sizes"].split(";")]
        assert len(list(splitter)) == count == len(sizes)
        assert sum(sizes) == pytest.approx(1.0, abs=1e-3)
        assert splitter.attrib["orientation"] in ("-", "|")
    assert plotjuggler().find("tabbed_widget").attrib["parent"] == "main_window"


def test_plotjuggler_draws_numbers_of_the_topics_it_subscribes_to(interface: Any) -> None:
    topics, _ = interface
    root = plotjuggler()
    (plugin,) = root.find("Plugins")
    assert plugin.attrib["ID"] == root.find("previouslyLoaded_Streamer").attrib["name"]
    selected = plugin.find("selected_topics").attrib["value"].split(";")
    assert set(selected) <= set(topics)
    curves = [curve.attrib["name"] for curve in root.iter("curve")]
    assert len(curves) == len(set(curves)) >= 20
    for path in curves:
        assert any(path.startswith(topic + "/") for topic in selected), path
        assert issubclass(field_type(topics, path, "/"), NUMBERS), path


# Foxglove ----------------------------------------------------------------------------------------


def foxglove() -> dict[str, Any]:
    return json.loads((LAYOUTS / "foxglove_layout.json").read_text(encoding="utf-8"))


def leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
        return
    assert set(node) == {"direction", "first", "second", "splitPercentage"}
    assert node["direction"] in ("row", "column") and 0 < node["splitPercentage"] < 100
    yield from leaves(node["first"])
    yield from leaves(node["second"])


def test_foxglove_shows_each_panel_once() -> None:
    layout = foxglove()
    panels = list(leaves(layout["layout"]))
    assert sorted(panels) == sorted(layout["configById"])
    assert {panel.partition("!")[0] for panel in panels} == FOXGLOVE_PANELS


def test_foxglove_panels_are_about_things_that_exist(interface: Any) -> None:
    topics, services = interface
    for panel, config in foxglove()["configById"].items():
        kind = panel.partition("!")[0]
        if kind in ("Plot", "StateTransitions"):
            for path in config["paths"]:
                assert issubclass(field_type(topics, path["value"], "."), NUMBERS), path
        elif kind == "Image":
            assert topics[config["imageMode"]["imageTopic"]] == "sensor_msgs/msg/Image"
        elif kind == "3D":
            assert set(config["topics"]) <= set(topics)
        elif kind == "CallService":
            kind_of_service = services[config["serviceName"]]
            assert kind_of_service in ("std_srvs/srv/Trigger", "std_srvs/srv/SetBool")
            fields = json.loads(config["requestPayload"])
            assert set(fields) == ({"data"} if kind_of_service.endswith("SetBool") else set())
        elif kind == "Publish":
            assert topics[config["topicName"]] == config["datatype"]
            assert set(json.loads(config["value"])) == {"data"}
        else:
            assert config.get("topicPath") or config["topicToRender"] in topics
            field_type(topics, config.get("topicPath") or config["topicToRender"], ".")
