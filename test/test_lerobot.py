"""LeRobot folders v2.1 and v3.0: what is read, and every way in which one can be broken."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data.lerobot import lerobot_episodes
from openvla_ros.errors import ConfigurationError, DependencyError, ImageError

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")

RECS = [formats.recording(1), formats.recording(2, 4, "open the drawer")]
BOTH = pytest.mark.parametrize("version", ["v2.1", "v3.0"])
V2_DATA = "data/chunk-000/episode_000001.parquet"
V2_VIDEO = f"videos/chunk-000/{formats.CAMERA}/episode_000001.mp4"
#: Mean absolute difference that the video of the test recordings loses, grey levels of 255.
CODEC_LEVELS = 2.0


@pytest.fixture(scope="module")
def whole_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return formats.write_lerobot(tmp_path_factory.mktemp("whole") / "dataset", RECS)


@pytest.fixture
def dataset(whole_dataset: Path, tmp_path: Path) -> Path:
    """Two episodes in format v2.1, for this test to break."""
    return Path(shutil.copytree(whole_dataset, tmp_path / "dataset"))


def change_info(folder: Path, change: Callable[[dict], object]) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    change(info)
    (folder / "meta/info.json").write_text(json.dumps(info))


def rewrite_column(path: Path, name: str, values: list) -> None:
    """Replace one column of a file, or leave it out where the values are None."""
    table = pq.read_table(path)
    index = table.column_names.index(name)
    if values is None:
        table = table.remove_column(index)
    else:
        import pyarrow as pa

        kind = table.schema.field(index).type if values[0] is None else None
        table = table.set_column(index, name, pa.array(values, kind))
    pq.write_table(table, path)


def mean_difference(images: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(T,) grey levels."""
    return np.abs(images.astype(int) - expected).mean(axis=(1, 2, 3))


@BOTH
def test_everything_comes_back(tmp_path: Path, version: str) -> None:
    folder = formats.write_lerobot(tmp_path / "dataset", RECS, version)
    episodes = lerobot_episodes(folder)
    assert [e.name for e in episodes] == ["episode_000000", "episode_000001"]
    for episode, rec in zip(episodes, RECS, strict=True):
        assert (episode.instruction, episode.rate_hz) == (rec.tasks[0], formats.RATE_HZ)
        assert np.array_equal(episode.actions, rec.actions)
        assert np.array_equal(episode.states, rec.states)
        assert np.diff(episode.stamps_ns).tolist() == [200_000_000] * (len(rec) - 1)
        lost = mean_difference(np.stack(list(episode.open_images())), rec.images)
        assert lost.max() < CODEC_LEVELS, lost


@BOTH
def test_picture_columns_are_lossless_and_can_be_read_again(tmp_path: Path, version: str) -> None:
    folder = formats.write_lerobot(tmp_path / "dataset", RECS, version)
    for episode, rec in zip(lerobot_episodes(folder, "wrist"), RECS, strict=True):
        for _ in range(2):
            assert np.array_equal(np.stack(list(episode.open_images())), rec.images[:, :, ::-1])


@BOTH
@pytest.mark.parametrize("camera", ["primary", "wrist"])
def test_another_episode_begins_where_the_task_changes(
    tmp_path: Path, version: str, camera: str
) -> None:
    rec = formats.recording(3, 7)
    rec.tasks[3:] = ["put it down"] * 4
    folder = formats.write_lerobot(tmp_path / "dataset", [RECS[0], rec], version)
    _, first, second = lerobot_episodes(folder, camera)
    assert (first.name, len(first)) == ("episode_000001_part_000", 3)
    assert (second.name, second.instruction) == ("episode_000001_part_001", "put it down")
    assert np.array_equal(second.actions, rec.actions[3:])
    images = np.stack(list(second.open_images()))
    expected = rec.images[3:] if camera == "primary" else rec.images[3:, :, ::-1]
    assert mean_difference(images, expected).max() < CODEC_LEVELS


def test_an_older_name_of_the_layout_is_read_too(dataset: Path) -> None:
    change_info(dataset, lambda info: info.update(codebase_version="v2.0"))
    assert len(lerobot_episodes(dataset)) == 2


def test_joint_states_are_not_taken_for_a_pose(dataset: Path) -> None:
    names = {"motors": [f"joint_{i}" for i in range(7)]}
    change_info(dataset, lambda i: i["features"]["observation.state"].update(names=names))
    assert lerobot_episodes(dataset)[0].states is None
    assert lerobot_episodes(dataset, pose_key="observation.state")[0].states is not None
    with pytest.raises(ConfigurationError, match=r"'observation\.pose' is absent"):
        lerobot_episodes(dataset, pose_key="observation.pose")


def test_an_unknown_camera_lists_what_there_is(dataset: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cameras: .*primary, .*wrist; the camera 'top'"):
        lerobot_episodes(dataset, "top")


def test_a_depth_map_is_no_camera(dataset: Path) -> None:
    change_info(
        dataset,
        lambda i: i["features"][formats.CAMERA].update(info={"video.is_depth_map": True}),
    )
    assert lerobot_episodes(dataset)[0].open_images().__next__().shape == (*formats.SIZE, 3)
    with pytest.raises(ConfigurationError, match="'primary' is not one of them"):
        lerobot_episodes(dataset, "primary")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda i: i.update(codebase_version="v9"), "version 'v9'"),
        (lambda i: i.update(fps=0), "fps and chunks_size"),
        (lambda i: i.update(total_episodes=3), "lists 2 episodes, and .* 3"),
        (lambda i: i.pop("features"), "not the info.json"),
        (lambda i: i["features"].pop("action"), "'action' is absent"),
        (lambda i: i["features"]["action"].update(shape=[8]), "must hold 8 numbers"),
        (lambda i: i["features"]["action"].update(shape=[7, 1]), "must be one vector"),
        (lambda i: i["features"]["action"].update(dtype="string"), "must be one vector"),
        (lambda i: i.update(data_path="../{episode_index}.parquet"), "leads out of the dataset"),
        (lambda i: i.update(data_path="{nothing}.parquet"), "cannot be filled in"),
        (lambda i: i.update(video_path=None), "cannot be filled in"),
        (lambda i: i["features"][formats.CAMERA].update(shape=[48, 64]), None),
        (lambda i: i.update(fps=10), "timestamp 0.2000 s"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(dataset: Path, change, why: str | None) -> None:
    change_info(dataset, change)
    if why is None:  # a shape that says nothing is not held against the pictures
        assert len(list(lerobot_episodes(dataset)[0].open_images())) == 6
        return
    with pytest.raises(ConfigurationError, match=why):
        lerobot_episodes(dataset)


@pytest.mark.parametrize("camera", ["primary", "wrist"])
def test_the_size_in_the_description_is_held_against_the_pictures(
    dataset: Path, camera: str
) -> None:
    change_info(
        dataset,
        lambda i: [
            f.update(shape=[3, 40, 64], names=None)
            for f in i["features"].values()
            if len(f["shape"]) == 3
        ],
    )
    episode = lerobot_episodes(dataset, camera)[0]
    with pytest.raises(ConfigurationError, match="64 x 48 pixels where 64 x 40"):
        next(episode.open_images())


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("action", [[0.0] * 7, [0.0] * 7, [0.0] * 3 + [float("nan")] * 4, [0.0] * 7], "step 2"),
        ("action", [[0.0] * 7] * 3 + [[0.0] * 6], "must hold 7 numbers"),
        ("action", [[0.0] * 6, [0.0] * 8] * 2, "must hold 7 numbers"),
        ("action", [None] * 4, "4 rows lack 'action'"),
        ("action", ["a", "b", "c", "d"], "holds string"),
        ("action", None, "no column 'action'"),
        ("task_index", [5] * 4, "number 5"),
        ("frame_index", [0, 2, 1, 3], "step 1 has frame_index 2"),
        ("timestamp", [0.0, 0.2, 0.3, 0.6], "timestamp 0.3000 s"),
        ("timestamp", [0.0, 0.2, float("nan"), 0.6], "step 2"),
        ("episode_index", [1, 1, 1, 2], "has 3 rows, and meta/ lists 4"),
        ("episode_index", [1, 2, 1, 2], "do not follow each other"),
        (formats.WRIST, None, "is absent"),
        (formats.WRIST, ["a.png"] * 4, "holds string"),
    ],
)
def test_rows_that_do_not_fit_are_refused(dataset: Path, column: str, values, why: str) -> None:
    rewrite_column(dataset / V2_DATA, column, values)
    with pytest.raises(ConfigurationError, match=why):
        lerobot_episodes(dataset, "wrist")


def test_a_picture_that_is_not_embedded_is_refused(dataset: Path) -> None:
    rewrite_column(dataset / V2_DATA, formats.WRIST, [{"bytes": None, "path": "a.png"}] * 4)
    episode = lerobot_episodes(dataset, "wrist")[1]
    with pytest.raises(ConfigurationError, match="holds no picture"):
        list(episode.open_images())


def test_a_damaged_picture_names_its_step(dataset: Path) -> None:
    table = pq.read_table(dataset / V2_DATA)
    pictures = table.column(formats.WRIST).to_pylist()
    pictures[2]["bytes"] = pictures[2]["bytes"][:-60]
    rewrite_column(dataset / V2_DATA, formats.WRIST, pictures)
    with pytest.raises(ImageError, match="step 2"):
        list(lerobot_episodes(dataset, "wrist")[1].open_images())


@pytest.mark.parametrize("name", [V2_DATA, V2_VIDEO, "meta/tasks.jsonl", "meta/episodes.jsonl"])
def test_a_missing_file_is_named(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    with pytest.raises(ConfigurationError, match=name.rpartition("/")[2]):
        lerobot_episodes(dataset)


@pytest.mark.parametrize("text", ['{"task_index": 0}', '{"task_index": "0", "task": "a"}', "[]"])
def test_a_malformed_list_of_tasks_is_named(dataset: Path, text: str) -> None:
    """A task without a text ended in a KeyError."""
    (dataset / "meta/tasks.jsonl").write_text(text)
    with pytest.raises(ConfigurationError, match=r"tasks\.jsonl"):
        lerobot_episodes(dataset)


@pytest.mark.parametrize("name", [V2_DATA, V2_VIDEO, "meta/tasks.jsonl", "meta/info.json"])
def test_a_truncated_file_is_named(dataset: Path, name: str) -> None:
    data = (dataset / name).read_bytes()
    (dataset / name).write_bytes(data[: 2 * len(data) // 3])
    with pytest.raises(ConfigurationError, match=name.rpartition("/")[2]):
        for episode in lerobot_episodes(dataset):
            list(episode.open_images())


def test_a_video_shorter_than_its_episode_is_noticed_before_anything_is_decoded(
    dataset: Path,
) -> None:
    formats.write_video(dataset / V2_VIDEO, RECS[1].images[:3])
    with pytest.raises(ConfigurationError, match=r"ends at 0\.600 s"):
        lerobot_episodes(dataset)


def test_a_shared_video_that_ends_early_is_noticed(tmp_path: Path) -> None:
    folder = formats.write_lerobot(tmp_path / "dataset", RECS, "v3.0")
    video = folder / f"videos/{formats.CAMERA}/chunk-000/file-000.mp4"
    formats.write_video(video, np.concatenate([RECS[0].images, RECS[1].images[:2]]))
    with pytest.raises(ConfigurationError, match=r"begins at 1\.200 s has 4 frames"):
        lerobot_episodes(folder)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_a_damaged_table_of_v30_is_named(tmp_path: Path, name: str) -> None:
    folder = formats.write_lerobot(tmp_path / "dataset", RECS, "v3.0")
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(ConfigurationError, match="not a readable Parquet file"):
        lerobot_episodes(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigurationError):
        lerobot_episodes(folder)


def test_an_empty_task_is_read_when_asked_for(tmp_path: Path) -> None:
    folder = formats.write_lerobot(tmp_path / "dataset", [RECS[0], formats.recording(5, 4, "")])
    with pytest.raises(ConfigurationError, match="no instruction"):
        lerobot_episodes(folder)
    read = lerobot_episodes(folder, keep_unlabelled=True)
    assert [bool(episode.instruction) for episode in read] == [True, False]


@pytest.mark.parametrize("library", ["pyarrow", "av"])
def test_a_missing_library_names_its_extra(dataset: Path, library: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=r"pip install '\.\[lerobot\]'"):
        lerobot_episodes(dataset)
