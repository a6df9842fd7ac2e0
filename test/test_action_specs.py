"""What is published about actions is read faithfully, and gaps stay gaps."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from openvla_ros.action_specs import (
    SPEC_FIELDS,
    USER_SOURCE,
    described_keys,
    load_action_spec,
    parse_action_specs,
    require_agreement,
)
from openvla_ros.errors import ConfigurationError

# The keys of openvla-7b's norm_stats (spec of the model, §3.1).
OPENVLA_7B_KEYS = """
austin_buds_dataset_converted_externally_to_rlds austin_sailor_dataset_converted_externally_to_rlds
austin_sirius_dataset_converted_externally_to_rlds bc_z berkeley_autolab_ur5 berkeley_cable_routing
berkeley_fanuc_manipulation bridge_orig cmu_stretch
dlr_edan_shared_control_converted_externally_to_rlds dobbe fmb_dataset fractal20220817_data
furniture_bench_dataset_converted_externally_to_rlds
iamlab_cmu_pickup_insert_converted_externally_to_rlds jaco_play kuka
nyu_franka_play_dataset_converted_externally_to_rlds roboturk
stanford_hydra_dataset_converted_externally_to_rlds taco_play toto
ucsd_kitchen_dataset_converted_externally_to_rlds utaustin_mutex viola
""".split()


def test_every_key_of_openvla_7b_has_a_row() -> None:
    assert len(OPENVLA_7B_KEYS) == 25
    assert set(OPENVLA_7B_KEYS) <= set(described_keys())


def test_bridge_has_everything_that_motion_needs() -> None:
    spec = load_action_spec("bridge_orig")
    assert spec.unknown_for_motion() == ()
    assert (spec.action_hz, spec.translation_unit_m, spec.rotation_unit_rad) == (5.0, 1.0, 1.0)
    assert (spec.translation_frame, spec.rotation_frame) == ("base", "base")
    assert spec.rotation_form == "euler_xyz"
    assert (spec.gripper_open, spec.gripper_closed) == (1.0, 0.0)
    assert "run_bridgev2_eval.py" in spec.sources["action_hz"]


def test_every_value_has_a_source_and_every_gap_has_none() -> None:
    for key in described_keys():
        spec = load_action_spec(key)
        given = {name for name in SPEC_FIELDS if getattr(spec, name) is not None}
        assert set(spec.sources) == given, key
        assert all(spec.sources.values()), key


@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
def test_libero_with_and_without_no_ops_mean_the_same(suite: str) -> None:
    plain, filtered = (load_action_spec(f"libero_{suite}{suffix}") for suffix in ("", "_no_noops"))
    for name in SPEC_FIELDS:
        assert getattr(plain, name) == getattr(filtered, name), name
    assert plain.action_hz == 20.0
    assert plain.rotation_form == "rotvec"


def test_the_largest_droid_step_is_the_published_one() -> None:
    """A velocity of norm 1 is 75 mm and 0.15 rad in one step of 1/15 s."""
    spec = load_action_spec("droid")
    speed_m_s = 1.0 * spec.translation_unit_m * spec.action_hz
    assert np.isclose(speed_m_s, 1.125)
    assert spec.kind == "eef_velocity"


def test_an_unknown_key_gives_no_facts() -> None:
    spec = load_action_spec("my_own_demos")
    assert spec.unnorm_key == "my_own_demos"
    assert all(getattr(spec, name) is None for name in SPEC_FIELDS)
    assert set(spec.unknown_for_motion()) == set(spec.NEEDED_FOR_MOTION)


def test_a_user_fills_a_gap_and_is_named_as_its_source() -> None:
    spec = load_action_spec("my_own_demos", {"action_hz": 10, "rotation_form": None})
    assert spec.action_hz == 10.0
    assert spec.sources == {"action_hz": USER_SOURCE}
    assert spec.rotation_form is None


def test_a_user_replaces_a_published_value_without_changing_it_for_others() -> None:
    assert load_action_spec("bridge_orig", {"action_hz": 3.0}).action_hz == 3.0
    assert load_action_spec("bridge_orig").action_hz == 5.0


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"rate": 5}, "'rate' is not a field"),
        ({"action_hz": 0}, "greater than 0"),
        ({"action_hz": float("nan")}, "finite"),
        ({"action_hz": "5"}, "finite number"),
        ({"action_hz": True}, "finite number"),
        ({"translation_frame": "camera"}, "base, ee"),
        ({"kind": "joint_delta"}, "eef_delta"),
    ],
)
def test_an_unusable_override_is_an_error_that_says_what_is_allowed(overrides, text) -> None:
    with pytest.raises(ConfigurationError, match=text):
        load_action_spec("bridge_orig", overrides)


def document(**changes: object) -> str:
    row = dict.fromkeys(SPEC_FIELDS) | {"action_hz": [5.0, "paper"]} | changes
    return yaml.safe_dump({"sources": {"paper": "a paper"}, "specs": {"k": row}})


def test_a_row_of_the_file_is_read_with_its_source() -> None:
    values, sources = parse_action_specs(document())["k"]
    assert values == {"action_hz": 5.0}
    assert sources == {"action_hz": "a paper"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document(action_hz=5.0), "must be null or"),
        (document(action_hz=[5.0, "hearsay"]), "must be null or"),
        (document(colour=None), "colour"),
        (document(kind=["teleport", "paper"]), "eef_delta"),
    ],
)
def test_a_file_that_breaks_the_rules_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_action_specs(text)


def test_a_profile_that_agrees_or_says_nothing_passes() -> None:
    spec = load_action_spec("bridge_orig")
    require_agreement({}, spec)
    require_agreement({"action_hz": 5.0, "rotation_frame": "base", "gripper_closed": 0.0}, spec)


def test_what_nobody_has_published_contradicts_no_profile() -> None:
    require_agreement({"action_hz": 12.0, "rotation_frame": "ee"}, load_action_spec("my_own_demos"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("translation_frame", "ee"),
        ("rotation_frame", "ee"),
        ("kind", "eef_velocity"),
        ("rotation_form", "rotvec"),
        ("translation_unit_m", 0.01),
        ("rotation_unit_rad", 0.0174533),
        ("action_hz", 15.0),
        ("gripper_open", 0.0),
        ("gripper_closed", 1.0),
    ],
)
def test_a_profile_that_contradicts_the_checkpoint_is_refused_with_the_field(
    name: str, value: object
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_agreement({name: value}, load_action_spec("bridge_orig"))
    text = str(caught.value)
    assert f"{name}: this robot expects {value!r}" in text and "bridge_orig" in text


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"action_hz.*rotation_frame"):
        require_agreement(
            {"action_hz": 15.0, "rotation_frame": "ee"}, load_action_spec("bridge_orig")
        )
