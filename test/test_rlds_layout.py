"""What a features.json or a first record says about the steps of an RLDS dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import recording_formats as formats

from openvla_ros.data.rlds_layout import layout_from_example, layout_from_file
from openvla_ros.data.tfrecord import RecordPlace, parse_example

PRIMARY = "steps/observation/image_primary"


def test_features_json_gives_names_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps(formats.features_json()))
    layout = layout_from_file(path)
    assert layout.cameras == {PRIMARY: formats.SIZE}
    assert layout.vectors == {"steps/action": 7, "steps/observation/state": 7}
    assert layout.instruction == "steps/language_instruction"


def test_depth_and_images_of_any_size_are_told_apart(tmp_path: Path) -> None:
    text = json.dumps(formats.features_json())
    path = tmp_path / "features.json"
    path.write_text(text.replace('["48", "64", "3"]', '["-1", "-1", "3"]'))
    assert layout_from_file(path).cameras == {PRIMARY: None}
    path.write_text(text.replace('["48", "64", "3"]', '["48", "64", "1"]'))
    assert layout_from_file(path).cameras == {}


def test_encoded_tensors_are_no_plain_vectors(tmp_path: Path) -> None:
    """Compressed tensors are stored as bytes; only lists of floats are read."""
    features = formats.features_json()
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    state = steps["features"]["observation"]["featuresDict"]["features"]["state"]
    state["tensor"]["encoding"] = "zlib"
    path = tmp_path / "features.json"
    path.write_text(json.dumps(features))
    assert layout_from_file(path).vectors == {"steps/action": 7}


def test_a_record_alone_shows_the_same_names() -> None:
    data = formats.example(formats.rlds_features(formats.recording(1)))
    place = RecordPlace(Path("made.tfrecord"), 0, len(data))
    layout = layout_from_example(parse_example(data, place), place.path)
    assert layout.cameras == {PRIMARY: None}
    assert layout.vectors == {"steps/action": None, "steps/observation/state": None}
    assert layout.instruction == "steps/language_instruction"


def test_an_empty_list_in_a_record_alone_is_no_camera() -> None:
    """It was an IndexError, without a word about the file."""
    features = formats.rlds_features(formats.recording(1))
    data = formats.example({**features, "steps/observation/depth": []})
    place = RecordPlace(Path("made.tfrecord"), 0, len(data))
    parsed = parse_example(data, place)
    empty = replace(parsed["steps/observation/depth"], kind="bytes")
    layout = layout_from_example({**parsed, empty.name: empty}, place.path)
    assert list(layout.cameras) == [PRIMARY]
