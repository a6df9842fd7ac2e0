"""Definitions of messages as Foxglove wants them."""

from __future__ import annotations

import pytest

pytest.importorskip(
    "ament_index_python", reason="needs ROS; run `make setup`, then `source scripts/env.bash`"
)

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.message_text import SEPARATOR, schema_text

pytestmark = pytest.mark.ros


def test_every_type_inside_a_message_follows_once() -> None:
    first, *rest = schema_text("geometry_msgs/msg/TwistStamped").split(SEPARATOR)
    assert "Twist twist" in first
    names = [part.splitlines()[0] for part in rest]
    assert names == [
        "MSG: std_msgs/Header",
        "MSG: geometry_msgs/Twist",
        "MSG: builtin_interfaces/Time",
        "MSG: geometry_msgs/Vector3",
    ]


@pytest.mark.parametrize(
    ("type_name", "inside"),
    [
        ("visualization_msgs/msg/MarkerArray", "MSG: geometry_msgs/Point"),  # an array of arrays
        ("diagnostic_msgs/msg/DiagnosticArray", "MSG: diagnostic_msgs/KeyValue"),
        ("sensor_msgs/msg/CameraInfo", "MSG: sensor_msgs/RegionOfInterest"),
        ("openvla_ros/msg/VLAAction", "MSG: geometry_msgs/Vector3"),
    ],
)
def test_nested_types_are_found(type_name: str, inside: str) -> None:
    assert f"{SEPARATOR}{inside}\n" in schema_text(type_name)


def test_comments_and_constants_stay_and_are_no_types() -> None:
    text = schema_text("openvla_ros/msg/VLAStatus")
    assert "uint8 FAULT=6" in text
    assert text.count("MSG: ") == 2  # Header and Time


@pytest.mark.parametrize("name", ["nobody_msgs/msg/Nothing", "std_msgs/msg/Nothing", "String"])
def test_an_unknown_type_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        schema_text(name)
