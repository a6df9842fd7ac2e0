"""One truth for parameters: dataclasses == config/openvla.yaml == README table."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from openvla_ros.config import PARAMETERS, NodeConfig
from openvla_ros.config.files import markdown_table, read_parameter_file, yaml_text
from openvla_ros.errors import ConfigurationError
from openvla_ros.mock_policy import MockPolicy

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- parameters:begin -->", "<!-- parameters:end -->"


def test_the_yaml_file_holds_every_parameter_with_unit_and_range() -> None:
    """Regenerate with: python -m openvla_ros.config.files yaml > config/openvla.yaml."""
    assert (ROOT / "config" / "openvla.yaml").read_text(encoding="utf-8") == yaml_text()


def test_the_yaml_file_read_back_equals_the_defaults() -> None:
    values = read_parameter_file(ROOT / "config" / "openvla.yaml")
    assert list(values) == list(PARAMETERS)
    assert NodeConfig.from_values(values) == NodeConfig()


def test_the_readme_table_lists_the_same_parameters() -> None:
    """Regenerate with: python -m openvla_ros.config.files markdown."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("this checkout has no README.md")
    text = readme.read_text(encoding="utf-8")
    assert BEGIN in text and END in text, f"README.md needs {BEGIN} and {END} around its table"
    table = text.split(BEGIN)[1].split(END)[0].strip()
    assert table == markdown_table().strip()


def test_every_parameter_says_what_it_does() -> None:
    for parameter in PARAMETERS.values():
        assert len(parameter.description) > 10, parameter.name
        assert parameter.check(parameter.default) == parameter.default, parameter.name


def test_every_parameter_reaches_a_field() -> None:
    """A parameter that no concern holds would be declared and ignored."""
    concerns = [getattr(NodeConfig(), f.name) for f in fields(NodeConfig)]
    names = [f.metadata["parameter"].name for concern in concerns for f in fields(concern)]
    assert sorted(names) == sorted(PARAMETERS)
    changed = {
        name: {"bool": True, "string": "x"}.get(p.type_name)
        for name, p in PARAMETERS.items()
        if p.type_name == "string" and not p.choices
    }
    config = NodeConfig.from_values(changed)
    values = {
        f.metadata["parameter"].name: getattr(concern, f.name)
        for concern in (getattr(config, g.name) for g in fields(config))
        for f in fields(concern)
    }
    assert all(values[name] == "x" for name in changed)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "robots").glob("*.yaml")))
def test_robot_profiles_hold_known_parameters_and_a_base_frame(path: Path) -> None:
    values = read_parameter_file(path)
    assert values["base_frame"]
    assert "motion_enabled" not in values, "a profile must not arm the robot"
    NodeConfig.from_values({**values, "motion_enabled": True})


def test_dry_run_is_the_default_and_no_rate_is_invented() -> None:
    config = NodeConfig()
    assert config.motion.motion_enabled is False
    assert config.action.overrides() == {}


def test_a_misspelt_parameter_is_an_error_with_a_hint() -> None:
    with pytest.raises(ConfigurationError, match=r"limits\.linear_speed"):
        NodeConfig.from_values({"limits.linear_sped": 0.1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action_hz", float("nan")),
        ("action_hz", -1.0),
        ("limits.linear_speed", 0.0),
        ("limits.linear_speed", float("inf")),
        ("speed_scale", 1.1),
        ("speed_scale", True),
        ("speed_scale", "fast"),
        ("motion_enabled", 1),
        ("gripper.sticky_steps", 2.5),
        ("gripper.sticky_steps", 0),
        ("quantization", "int3"),
        ("backend", ""),
        ("checkpoint", 7),
        ("action_rotation_rpy", [0.0, 0.0]),
        ("action_rotation_rpy", [0.0, 0.0, float("nan")]),
        ("action_rotation_rpy", ["0", "0", "0"]),
        ("action_rotation_rpy", 1.0),
        ("image_roi", [0, 0, 10.5, 10]),
        ("image_roi", [-1, 0, 10, 10]),
        ("mock_action", []),
    ],
)
def test_an_unusable_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        NodeConfig.from_values({name: value})


def test_a_whole_number_is_a_double_too() -> None:
    """`action_hz:=5` is an integer for ROS."""
    config = NodeConfig.from_values({"action_hz": 5, "action_rotation_rpy": [0, 1, 0]})
    assert config.action.action_hz == 5.0
    assert config.motion.action_rotation_rpy == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "values",
    [
        {"motion_enabled": True},
        {"gripper.open_position": 0.01, "gripper.closed_position": 0.02},
        {"image_roi": [0, 0, 10, 0]},
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        NodeConfig.from_values(values)


def test_what_the_user_knows_about_the_dataset_completes_the_spec() -> None:
    config = NodeConfig.from_values(
        {"action_hz": 10, "action_spec.gripper_open": -1, "action_spec.gripper_closed": 1}
    )
    assert config.action.overrides() == {
        "action_hz": 10.0,
        "gripper_open": -1.0,
        "gripper_closed": 1.0,
    }


def test_mock_faults_of_the_parameter_are_those_of_the_mock() -> None:
    documented = MockPolicy.__doc__ or ""
    for fault in PARAMETERS["mock_fault"].choices:
        assert f'"{fault}"' in documented


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "a: {ros__parameters: {}}\nb: {ros__parameters: {}}",
        "[",
        "a: {ros__parameters: 3}",
    ],
)
def test_a_file_that_is_no_parameter_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"broken\.yaml"):
        read_parameter_file(path)


def test_yaml_types_are_those_that_ros_expects() -> None:
    """ROS tells 5 from 5.0: a double written as 5 would be declared as an integer."""
    tree = yaml.safe_load(yaml_text())["/**"]["ros__parameters"]
    assert isinstance(tree["policy_rate"], float)
    for value in tree["limits"].values():
        numbers = value if isinstance(value, list) else [value]
        assert all(isinstance(number, float) for number in numbers), value
    assert tree["quantization"] == "none"


@pytest.mark.parametrize("missing", ["base_frame", "ee_frame"])
def test_a_pose_from_tf_needs_both_frames(missing: str) -> None:
    values = {"ee_pose_source": "tf", "base_frame": "fr3_link0", "ee_frame": "fr3_hand_tcp"}
    assert NodeConfig.from_values(values).operation.ee_pose_source == "tf"
    with pytest.raises(ConfigurationError, match=f"{missing} is empty"):
        NodeConfig.from_values({**values, missing: ""})


def test_a_workspace_is_off_until_its_corners_differ() -> None:
    assert not NodeConfig().motion.has_workspace
    corners = {"limits.workspace_min": [0.1, -0.2, 0.0], "limits.workspace_max": [0.5, 0.2, 0.3]}
    assert NodeConfig.from_values(corners).motion.has_workspace


@pytest.mark.parametrize("highest", [[0.5, 0.2, 0.0], [0.5, -0.3, 0.3], [0.5, 0.2, 0.04]])
def test_a_workspace_without_room_is_refused(highest: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"workspace_max"):
        NodeConfig.from_values(
            {"limits.workspace_min": [0.1, -0.2, 0.0], "limits.workspace_max": highest}
        )


def test_a_profile_names_only_the_fields_on_which_it_insists() -> None:
    assert NodeConfig().profile.expected() == {}
    values = {
        "delta_frame.rotation": "ee",
        "expected.action_hz": 10.0,
        "expected.gripper_open": -1.0,
        "expected.gripper_closed": 0.0,
    }
    assert NodeConfig.from_values(values).profile.expected() == {
        "rotation_frame": "ee",
        "action_hz": 10.0,
        "gripper_open": -1.0,
        "gripper_closed": 0.0,
    }
