"""RLDS datasets: layouts, names, rates, and every way in which one can be broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data.rlds import rlds_episodes
from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.model.image_options import decode_jpeg

RECS = [formats.recording(1), formats.recording(2, 4, "open the drawer")]


def write_record(folder: Path, **changes: object) -> Path:
    """One episode without features.json; a feature is replaced, or left out where None is given."""
    features = formats.rlds_features(RECS[0])
    features |= {name.replace("__", "/"): value for name, value in changes.items()}
    kept = {name: value for name, value in features.items() if value is not None}
    path = folder / "some.tfrecord"
    path.write_bytes(formats.framed(formats.example(kept)))
    return path


def test_everything_in_the_folder_comes_back(tmp_path: Path) -> None:
    formats.write_rlds(tmp_path, RECS)
    episodes = rlds_episodes(tmp_path, rate_hz=5, pose_key="state")
    assert [e.name for e in episodes] == ["train_00000_000000", "train_00000_000001"]
    for episode, rec in zip(episodes, RECS, strict=True):
        assert episode.instruction == rec.tasks[0] and episode.rate_hz == 5
        assert np.array_equal(episode.actions, rec.actions)
        assert np.array_equal(episode.states, rec.states)
        expected = [decode_jpeg(formats.encoded(image, "JPEG")) for image in rec.images]
        assert np.array_equal(np.stack(list(episode.open_images())), np.stack(expected))


def test_a_file_alone_is_read_by_what_its_records_hold(tmp_path: Path) -> None:
    path = formats.write_rlds(tmp_path, RECS)
    whole = rlds_episodes(tmp_path, rate_hz=5)
    for name in ("features.json", "dataset_info.json"):
        (tmp_path / name).unlink()
    alone = rlds_episodes(path, rate_hz=5)
    assert [e.name for e in alone] == [e.name for e in whole]
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(alone, whole, strict=True))


def test_png_pictures_are_lossless(tmp_path: Path) -> None:
    features = formats.rlds_features(RECS[0], "PNG")
    (tmp_path / "a.tfrecord").write_bytes(formats.framed(formats.example(features)))
    (episode,) = rlds_episodes(tmp_path, rate_hz=5)
    assert np.array_equal(np.stack(list(episode.open_images())), RECS[0].images)


def test_states_are_read_where_they_are_known_to_be_a_pose(tmp_path: Path) -> None:
    formats.write_rlds(tmp_path / "a", RECS)
    assert rlds_episodes(tmp_path / "a", rate_hz=5)[0].states is None
    formats.write_rlds(tmp_path / "b", RECS, name="bridge_orig")
    assert rlds_episodes(tmp_path / "b")[0].states is not None
    with pytest.raises(ConfigurationError, match="pose_key 'pose' is no vector of a step: state"):
        rlds_episodes(tmp_path / "a", rate_hz=5, pose_key="pose")


def test_the_published_rate_is_used_for_a_known_dataset_and_none_is_invented(
    tmp_path: Path,
) -> None:
    formats.write_rlds(tmp_path / "known", RECS, name="bridge_orig")
    assert rlds_episodes(tmp_path / "known")[0].rate_hz == 5
    formats.write_rlds(tmp_path / "unknown", RECS)
    with pytest.raises(ConfigurationError, match="no rate is published for the dataset 'my_robot'"):
        rlds_episodes(tmp_path / "unknown")


def test_another_episode_begins_where_the_task_changes(tmp_path: Path) -> None:
    texts = [b"first"] * 2 + [b""] + [b"second"] * 3
    path = write_record(tmp_path, steps__language_instruction=texts)
    with pytest.raises(ConfigurationError, match="skip_unlabelled"):
        rlds_episodes(path, rate_hz=5)
    first, unlabelled, second = rlds_episodes(path, rate_hz=5, keep_unlabelled=True)
    assert (unlabelled.instruction, len(unlabelled)) == ("", 1)
    assert (first.name, first.instruction, len(first)) == (
        "some.tfrecord_000000_part_000",
        "first",
        2,
    )
    assert (second.name, second.instruction) == ("some.tfrecord_000000_part_002", "second")
    assert np.array_equal(second.actions, RECS[0].actions[3:])
    assert second.stamps_ns[0] - first.stamps_ns[0] == 600_000_000
    expected = [decode_jpeg(formats.encoded(image, "JPEG")) for image in RECS[0].images[3:]]
    assert np.array_equal(np.stack(list(second.open_images())), np.stack(expected))


@pytest.mark.parametrize(
    "name",
    [
        "steps/natural_language_instruction",
        "steps/observation/natural_language_instruction",
        "steps/observation/language_instruction",
    ],
)
def test_the_instruction_is_found_in_its_four_places(tmp_path: Path, name: str) -> None:
    changes = {"steps/language_instruction": None, name: [b"wipe the table"] * 6}
    (episode,) = rlds_episodes(write_record(tmp_path, **changes), rate_hz=5)
    assert episode.instruction == "wipe the table"


def nan_at_step_2() -> np.ndarray:
    actions = RECS[0].actions.copy()
    actions[2, 1] = np.nan
    return actions


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"steps__action": None}, "steps/action must be one vector"),
        ({"steps__action": np.arange(42)}, "steps/action must be one vector"),
        ({"steps__action": np.zeros(41, np.float32)}, "41 numbers for 6 steps"),
        ({"steps__action": np.zeros(0, np.float32)}, "0 numbers for 6 steps"),
        ({"steps__action": nan_at_step_2()}, "action of step 2 is"),
        ({"steps__language_instruction": None}, "no instruction; one of"),
        ({"steps__language_instruction": [b"x"] * 5}, "5 texts for 6 steps"),
        ({"steps__language_instruction": [b"\xff"] * 6}, "no UTF-8"),
        ({"steps__language_instruction": np.zeros(6, np.float32)}, "holds float values"),
        ({"steps__observation__image_primary": None}, "cameras: none"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        rlds_episodes(write_record(tmp_path, **changes), rate_hz=5)


def test_sizes_in_features_json_are_held_against_the_records(tmp_path: Path) -> None:
    path = formats.write_rlds(tmp_path, RECS)
    text = (tmp_path / "features.json").read_text()
    (tmp_path / "features.json").write_text(text.replace('["7"]', '["8"]'))
    with pytest.raises(ConfigurationError, match="42 numbers for 6 steps of 8"):
        rlds_episodes(path, rate_hz=5)
    (tmp_path / "features.json").write_text(text.replace('"48"', '"224"'))
    (episode, _) = rlds_episodes(path, rate_hz=5)
    with pytest.raises(
        ConfigurationError, match="step 0: an image of 64 x 48 pixels where 64 x 224"
    ):
        next(episode.open_images())


def test_actions_in_parts_are_refused_with_what_there_is(tmp_path: Path) -> None:
    """Datasets such as Open X-Embodiment's "bridge" keep a dictionary of several vectors."""
    formats.write_rlds(tmp_path, RECS)
    features = formats.features_json()
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    vector = steps["features"]["action"]
    steps["features"]["action"] = {"featuresDict": {"features": {"world_vector": vector}}}
    (tmp_path / "features.json").write_text(json.dumps(features))
    with pytest.raises(ConfigurationError, match="A step holds: steps/action/world_vector"):
        rlds_episodes(tmp_path, rate_hz=5)


def test_an_unknown_camera_lists_what_there_is(tmp_path: Path) -> None:
    formats.write_rlds(tmp_path, RECS)
    with pytest.raises(ConfigurationError, match="cameras: steps/observation/image_primary; the"):
        rlds_episodes(tmp_path, "wrist", rate_hz=5)


def test_a_damaged_record_is_known_when_the_dataset_is_opened(tmp_path: Path) -> None:
    path = formats.write_rlds(tmp_path, RECS)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # in the last record
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match="does not fit its checksum"):
        rlds_episodes(tmp_path, rate_hz=5)


def test_a_file_cut_between_records_is_noticed(tmp_path: Path) -> None:
    path = formats.write_rlds(tmp_path, RECS)
    path.write_bytes(formats.framed(formats.example(formats.rlds_features(RECS[0]))))
    with pytest.raises(ConfigurationError, match=r"has 1 episodes, and dataset_info\.json lists 2"):
        rlds_episodes(tmp_path, rate_hz=5)


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    path = formats.write_rlds(tmp_path, RECS)
    path.rename(tmp_path / "my_robot-train.tfrecord-00000-of-00003")
    with pytest.raises(ConfigurationError, match=r"tfrecord-00001-of-00003 is missing"):
        rlds_episodes(tmp_path, rate_hz=5)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "[1]", '{"splits": 3, "featuresDict": {}}'])
def test_malformed_descriptions_are_refused(tmp_path: Path, name: str, text: str) -> None:
    formats.write_rlds(tmp_path, RECS)
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=name):
        rlds_episodes(tmp_path, rate_hz=5)


def test_a_damaged_picture_names_its_step(tmp_path: Path) -> None:
    pictures = [formats.encoded(image, "JPEG") for image in RECS[0].images]
    pictures[4] = pictures[4][:300]
    path = write_record(tmp_path, steps__observation__image_primary=pictures)
    (episode,) = rlds_episodes(path, rate_hz=5)
    with pytest.raises(ImageError, match="step 4"):
        list(episode.open_images())


def test_folders_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no"):
        rlds_episodes(tmp_path)
    (tmp_path / "a.tfrecord").touch()
    with pytest.raises(ConfigurationError, match="holds no episodes"):
        rlds_episodes(tmp_path)
