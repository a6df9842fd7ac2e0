"""RLDS datasets of Open X-Embodiment, read from files with the transform of their name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oxe_records as oxe
import pytest
import recording_formats as formats

from openvla_ros.cli import main
from openvla_ros.data.gripper_labels import binarize_gripper
from openvla_ros.data.oxe_transforms import TRANSFORMS
from openvla_ros.data.rlds import rlds_episodes
from openvla_ros.data.sources import open_episodes
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay.run import ReplayOptions, open_sources
from openvla_ros.ros.frame_sources import SHARED_VARIABLE, shared_data_folder
from openvla_ros.training.config import DataConfig, SourceConfig
from openvla_ros.training.datasets import open_training_sets

OCTO = (shared_data_folder() or Path("absent")) / "bridge_octo_tfrecord"

STATEFUL = {
    "bridge_orig",
    "bridge_dataset",
    "bridge_oxe",
    "fractal20220817_data",
    "kuka",
    "jaco_play",
    "berkeley_autolab_ur5",
    "furniture_bench_dataset_converted_externally_to_rlds",
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    "droid",
} | {name for name in TRANSFORMS if name.startswith("tdroid_")}


def write(folder: Path, *records: dict[str, object]) -> Path:
    path = folder / "some.tfrecord"
    path.write_bytes(b"".join(formats.framed(formats.example(r)) for r in records))
    return path


def read(folder: Path, name: str, dataset: oxe.OxeDataset, features: dict[str, np.ndarray]):
    (episode,) = rlds_episodes(write(folder, oxe.record(dataset, features)), transform=name)
    return episode


def test_every_transform_is_read_from_a_file() -> None:
    assert set(oxe.DATASETS) | STATEFUL == set(TRANSFORMS)


@pytest.mark.parametrize("name", sorted(oxe.DATASETS))
def test_every_step_stands_for_the_action_of_the_specification(tmp_path: Path, name: str) -> None:
    dataset = oxe.DATASETS[name]
    features = oxe.numbers(dataset)
    episode = read(tmp_path, name, dataset, features)
    expected = oxe.actions_of(dataset, features)
    difference = np.abs(episode.actions - expected).max()
    assert np.array_equal(episode.actions, expected), f"off by up to {difference:.3g}"
    assert episode.instruction == "pick up the can"
    assert [image[0, 0, 0] for image in episode.open_images()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "has_rotation"),
    [
        ("fractal20220817_data", True),
        ("kuka", True),
        ("berkeley_autolab_ur5", True),
        ("jaco_play", False),
    ],
)
def test_grippers_that_store_changes_become_absolute(
    tmp_path: Path, name: str, has_rotation: bool
) -> None:
    widths = {oxe.WORLD: 3, oxe.CLOSING: 1} | ({oxe.ROTATION: 3} if has_rotation else {})
    dataset = oxe.OxeDataset(widths, "image", lambda step: [])
    features = oxe.numbers(dataset)
    features[oxe.CLOSING] = np.float32([[0.0], [1.0], [0.0], [-1.0], [0.05]])
    actions = read(tmp_path, name, dataset, features).actions
    rotation = features.get(oxe.ROTATION, np.zeros((5, 3)))
    assert np.array_equal(actions[:, :6], np.column_stack([features[oxe.WORLD], rotation]))
    assert actions[:, 6].tolist() == [1, 0, 0, 1, 1]


def bridge(folder: Path, steps: int = 6, **changes: object) -> tuple[Path, dict[str, np.ndarray]]:
    dataset = oxe.OxeDataset(
        {"action": 7, oxe.STATE: 7}, "image_0", lambda step: [], "language_instruction"
    )
    features = oxe.numbers(dataset, steps)
    features["action"][:, 6] = np.resize([0.5, 1.0, 0.5, 0.0, 0.5, 1.0], steps)
    return write(folder, oxe.record(dataset, features) | changes), features


@pytest.mark.parametrize("name", ["bridge_orig", "bridge_dataset"])
def test_bridge_motions_are_differences_of_states(tmp_path: Path, name: str) -> None:
    path, features = bridge(tmp_path)
    (episode,) = rlds_episodes(path, transform=name)
    state = features[oxe.STATE]
    assert np.array_equal(episode.actions[:, :6], state[2:, :6] - state[1:-1, :6])
    assert episode.actions[:, 6].tolist() == [1, 0, 0, 1]
    assert episode.states is not None and np.array_equal(episode.states, state[1:-1])
    assert [image[0, 0, 0] for image in episode.open_images()] == [1, 2, 3, 4]
    assert np.diff(episode.stamps_ns).tolist() == [200_000_000] * 3 and episode.rate_hz == 5


def test_bridge_of_open_x_embodiment_keeps_its_gripper(tmp_path: Path) -> None:
    dataset = oxe.OxeDataset({oxe.OPEN: 1, oxe.STATE: 7}, "image", lambda step: [])
    features = oxe.numbers(dataset, 6)
    features[oxe.OPEN] = np.array([[0], [1], [0], [0], [1], [1]])
    episode = read(tmp_path, "bridge_oxe", dataset, features)
    assert episode.actions[:, 6].tolist() == [1, 0, 0, 1]


def test_a_dataset_is_replayed_and_audited_as_it_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, features = bridge(tmp_path)
    (job,), _ = open_sources([path], ReplayOptions(transform="bridge_orig"))
    moved = features[oxe.STATE][2:, :6] - features[oxe.STATE][1:-1, :6]
    assert np.array_equal(job.episode.actions[:, :6], moved)
    plans = [ReplayOptions(transform=name).deciding() for name in ("", "bridge_orig")]
    assert plans[0] != plans[1]  # another evaluation: a run of the one does not go on as the other
    main(["audit", str(path), "--transform", "bridge_orig", "--json"])
    assert json.loads(capsys.readouterr().out)["steps"] == 4


def test_an_episode_without_a_step_to_learn_from_is_left_out(tmp_path: Path) -> None:
    path, _ = bridge(tmp_path, steps=2)
    assert rlds_episodes(path, transform="bridge_orig") == []
    with pytest.raises(ConfigurationError, match="holds no episodes"):
        open_episodes(path, transform="bridge_orig")


def test_the_task_may_change_within_a_transformed_record(tmp_path: Path) -> None:
    texts = [b"first"] * 3 + [b"second"] * 3
    path, features = bridge(tmp_path, **{"steps/language_instruction": texts})
    first, second = rlds_episodes(path, transform="bridge_orig")
    assert (first.instruction, len(first), second.instruction, len(second)) == (
        "first",
        2,
        "second",
        2,
    )
    state = features[oxe.STATE]
    assert np.array_equal(second.actions[:, :6], state[4:, :6] - state[3:-1, :6])
    assert [image[0, 0, 0] for image in second.open_images()] == [3, 4]


@pytest.mark.parametrize(
    ("name", "gripper"),
    [
        ("furniture_bench_dataset_converted_externally_to_rlds", [1.0, 0.75, 0.0]),
        ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", [-1.0, 0.25, 2.0]),
    ],
)
def test_rotations_stored_as_quaternions_become_angles(
    tmp_path: Path, name: str, gripper: list[float]
) -> None:
    dataset = oxe.OxeDataset({"action": 8}, "image", lambda step: [], "language_instruction")
    features = oxe.numbers(dataset, 3)
    angle = 0.3
    turns = np.eye(3) * np.sin(angle / 2)  # about x, y, z in turn
    features["action"][:, 3:7] = np.column_stack([turns, np.full(3, np.cos(angle / 2))])
    features["action"][:, 7] = [-1.0, 0.25, 2.0]
    actions = read(tmp_path, name, dataset, features).actions
    assert np.array_equal(actions[:, :3], features["action"][:, :3])
    assert np.abs(actions[:, 3:6] - np.eye(3) * angle).max() < 1e-6, actions[:, 3:6]
    assert np.array_equal(actions[:, 6], gripper)


def droid(folder: Path, episodes: int = 1) -> tuple[Path, dict[str, np.ndarray]]:
    dataset = oxe.OxeDataset(
        {
            oxe.VELOCITY: 6,
            oxe.TARGET: 1,
            "observation/cartesian_position": 6,
            "observation/gripper_position": 1,
        },
        "exterior_image_1_left",
        lambda step: [],
        "language_instruction",
    )
    features = oxe.numbers(dataset, 6)
    features[oxe.VELOCITY][[0, 3]] = 0.0
    record = oxe.record(dataset, features)
    pictures = record.pop("steps/observation/another_view")
    record["steps/observation/exterior_image_2_left"] = pictures
    return write(folder, *[record] * episodes), features


def test_droid_has_two_cameras_to_choose_from(tmp_path: Path) -> None:
    path, features = droid(tmp_path)
    for camera, first in (("exterior_image_1_left", 0), ("exterior_image_2_left", 100)):
        (episode,) = rlds_episodes(path, camera, transform="droid")
        assert [image[0, 0, 0] - first for image in episode.open_images()] == [*range(6)]
        assert np.array_equal(episode.actions[:, :6], features[oxe.VELOCITY])
    position = [features[f"observation/{n}_position"] for n in ("cartesian", "gripper")]
    assert episode.states is not None and np.array_equal(episode.states, np.hstack(position))
    assert episode.rate_hz == 15


def test_half_of_the_droid_episodes_are_seen_by_either_camera_and_always_by_the_same(
    tmp_path: Path,
) -> None:
    path, _ = droid(tmp_path, episodes=40)
    first_levels = [
        [int(next(e.open_images())[0, 0, 0]) for e in rlds_episodes(path, transform="droid")]
        for _ in range(2)
    ]
    assert first_levels[0] == first_levels[1] and set(first_levels[0]) == {0, 100}
    assert 10 <= first_levels[0].count(100) <= 30, first_levels[0]


def test_idle_and_unlabelled_steps_count_in_the_statistics_and_are_not_trained_on(
    tmp_path: Path,
) -> None:
    """The reference computes them before its filters, and so are the published ones."""
    path, features = droid(tmp_path)
    unlabelled = path.read_bytes().replace(b"pick up the can", b" " * 15)
    record = formats.framed(unlabelled[12:-4])
    path.write_bytes(path.read_bytes() + record)
    source = SourceConfig(path=str(path), name="droid", transform="droid", skip_unlabelled=True)
    data = DataConfig(sources=(source,), held_out=0.0, cache_folder=str(tmp_path / "cache"))
    (one,) = open_training_sets(data, seed=0)
    assert (one.steps, len(one.episodes)) == (4, 1)
    assert one.dropped == {"without an instruction": 6, "idle": 2, "episodes": 1}
    assert np.array_equal(one.episodes[0].actions[:, :6], features[oxe.VELOCITY][[1, 2, 4, 5]])
    entry = one.entry
    assert (entry["num_transitions"], entry["num_trajectories"]) == (12, 2)
    q01 = np.quantile(np.tile(features[oxe.VELOCITY].astype(np.float64), (2, 1)), 0.01, axis=0)
    assert np.array_equal(entry["action"]["q01"][:6], q01)


@pytest.mark.parametrize("transform", ["droid", "droid_wipe"])
def test_velocities_are_not_added_up(tmp_path: Path, transform: str) -> None:
    path, _ = droid(tmp_path)
    source = SourceConfig(path=str(path), name="mine", transform=transform, resample_hz=5.0)
    data = DataConfig(sources=(source,), cache_folder=str(tmp_path / "cache"))
    with pytest.raises(ConfigurationError, match=r"mine: resample_hz adds .* velocities"):
        open_training_sets(data, seed=0)


def test_tabletop_grippers_are_binarised(tmp_path: Path) -> None:
    dataset = oxe.OxeDataset({"action": 7}, "static_image", lambda step: [], "language_instruction")
    features = oxe.numbers(dataset)
    features["action"][:, 6] = [0.0, 0.3, 1.0, 0.9, 0.01]
    actions = read(tmp_path, "tdroid_flip_pot_upright", dataset, features).actions
    assert actions[:, 6].tolist() == [0, 1, 1, 0, 0]


def test_features_json_gives_the_same_as_the_record_alone(tmp_path: Path) -> None:
    path = formats.write_rlds(tmp_path, [formats.recording(1)], name="bridge_orig")
    (with_file,) = rlds_episodes(tmp_path, "primary", transform="bridge_orig")
    for name in ("features.json", "dataset_info.json"):
        (tmp_path / name).unlink()
    (alone,) = rlds_episodes(path, "primary", transform="bridge_orig")
    assert len(alone) == 4 and np.array_equal(with_file.actions, alone.actions)


def test_a_feature_that_the_transform_needs_is_named_when_it_is_not_there(tmp_path: Path) -> None:
    path, _ = bridge(tmp_path)
    with pytest.raises(ConfigurationError, match=r"steps/action/world_vector, .*A step holds"):
        rlds_episodes(path, transform="kuka")
    with pytest.raises(ConfigurationError, match="'steps/observation/front' is not one of them"):
        rlds_episodes(path, "steps/observation/front", transform="bridge_orig")


def test_numbers_that_are_not_finite_are_refused_before_they_are_transformed(
    tmp_path: Path,
) -> None:
    states = np.full((6, 7), np.nan, np.float32)
    path, _ = bridge(tmp_path, **{"steps/observation/state": states})
    with pytest.raises(ConfigurationError, match="the state of step 0 is"):
        rlds_episodes(path, transform="bridge_orig")


@pytest.mark.parametrize("codes", [np.full((5, 3), -1), np.full((5, 3), 0xD800), np.ones(7)])
def test_instructions_that_are_no_text_are_refused(tmp_path: Path, codes: np.ndarray) -> None:
    dataset = oxe.DATASETS["language_table"]
    record = oxe.record(dataset, oxe.numbers(dataset))
    record["steps/observation/instruction"] = codes.astype(np.int64)
    with pytest.raises(ConfigurationError, match="are no 5 texts"):
        rlds_episodes(write(tmp_path, record), transform="language_table")


def test_an_unknown_transform_lists_the_known_ones(tmp_path: Path) -> None:
    path, _ = bridge(tmp_path)
    with pytest.raises(ConfigurationError, match=r"'bridge_v2' is unknown. Known: austin_buds"):
        open_episodes(path, transform="bridge_v2")


def test_other_kinds_of_recordings_take_no_transform(tmp_path: Path) -> None:
    np.savez(tmp_path / "episode_0.npz", **formats.npz_arrays(formats.recording(1)))
    with pytest.raises(ConfigurationError, match="npz does not take transform"):
        open_episodes(tmp_path, rate_hz=5, transform="bridge_orig")


@pytest.mark.skipif(
    not OCTO.is_dir(), reason=f"{SHARED_VARIABLE} must name a folder with the recordings"
)
def test_the_octo_sample_is_read_as_openvla_trains_on_it() -> None:
    stored = open_episodes(OCTO, camera="image_0", rate_hz=5)
    read_as = open_episodes(OCTO, transform="bridge_orig")
    assert len(stored) == len(read_as) == 25
    for raw, made in zip(stored, read_as, strict=True):
        states = raw.states.astype(np.float32)
        assert len(made) == len(raw) - 2 and made.name == raw.name
        assert np.array_equal(made.actions[:, :6], states[2:, :6] - states[1:-1, :6])
        gripper = binarize_gripper(raw.actions[1:, 6])[:-1]
        assert np.array_equal(made.actions[:, 6], gripper) and made.rate_hz == 5
        assert np.array_equal(next(made.open_images()), list(raw.open_images())[1])


@pytest.mark.skipif(
    not OCTO.is_dir(), reason=f"{SHARED_VARIABLE} must name a folder with the recordings"
)
def test_the_edits_of_a_source_make_of_bridge_data_what_its_transform_makes(
    tmp_path: Path,
) -> None:
    edited = SourceConfig(
        path=str(OCTO),
        name="edited",
        rate_hz=5.0,
        camera="image_0",
        drop_first_steps=1,
        actions="from_states",
        binarize_gripper=True,
    )
    transformed = SourceConfig(path=str(OCTO), name="transformed", transform="bridge_orig")
    data = DataConfig(sources=(edited, transformed), held_out=0.0, cache_folder=str(tmp_path))
    ours, reference = open_training_sets(data, seed=0)
    for one, other in zip(ours.episodes, reference.episodes, strict=True):
        # The transform subtracts in float32, and edits in float64.
        apart = np.abs(one.actions.astype(np.float32) - other.actions).max()
        assert len(one) == len(other) and apart < 1e-7, (one.name, apart)
        assert np.array_equal(one.stamps_ns, other.stamps_ns)


def test_a_named_mixture_is_opened_from_its_folder(tmp_path: Path) -> None:
    """The weights are those of the mixture; each dataset is read with the transform of its name."""
    for name in ("bridge_orig", "fractal20220817_data"):
        (tmp_path / name / "0.1.0").mkdir(parents=True)
    bridge(tmp_path / "bridge_orig/0.1.0")
    dataset = oxe.OxeDataset(
        {oxe.WORLD: 3, oxe.ROTATION: 3, oxe.CLOSING: 1}, "image", lambda step: []
    )
    features = oxe.numbers(dataset)
    records = [oxe.record(dataset, features), oxe.record(dataset, features, text="")]
    write(tmp_path / "fractal20220817_data/0.1.0", *records)
    data = DataConfig(
        mixture="bridge_rt_1",
        mixture_folder=str(tmp_path),
        held_out=0.0,
        cache_folder=str(tmp_path / "cache"),
    )
    sets = open_training_sets(data, seed=0)
    found = [(one.name, one.weight, one.steps, len(one.episodes)) for one in sets]
    assert found == [("bridge_orig", 1.0, 4, 1), ("fractal20220817_data", 1.0, 5, 1)]
