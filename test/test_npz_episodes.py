"""Episodes as .npz files: what is read, and what is refused."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data.npz_episodes import npz_episodes
from openvla_ros.errors import ConfigurationError, ImageError


def write(path: Path, **changes: object) -> Path:
    """A good file, with arrays replaced, or left out where None is given."""
    arrays = {**formats.npz_arrays(formats.recording(1)), "rate_hz": np.float64(5), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_everything_in_the_file_comes_back(tmp_path: Path) -> None:
    rec = formats.recording(1)
    (episode,) = npz_episodes(write(tmp_path / "episode_000.npz"))
    assert (episode.name, episode.instruction, episode.rate_hz) == ("episode_000", rec.tasks[0], 5)
    assert np.array_equal(episode.actions, rec.actions)
    assert np.array_equal(episode.states, rec.states)
    assert np.array_equal(np.stack(list(episode.open_images())), rec.images)
    assert np.diff(episode.stamps_ns).tolist() == [200_000_000] * 5 and episode.stamps_ns[0] > 0


def test_compressed_files_and_repeated_reading_work(tmp_path: Path) -> None:
    arrays = formats.npz_arrays(formats.recording(1))
    np.savez_compressed(tmp_path / "episode_0.npz", **arrays)
    (episode,) = npz_episodes(tmp_path, rate_hz=3)
    first, second = (np.stack(list(episode.open_images())) for _ in range(2))
    assert np.array_equal(first, second) and episode.rate_hz == 3


def test_stamps_of_the_file_are_kept_and_states_may_be_absent(tmp_path: Path) -> None:
    stamps = 7_000_000_000 + np.arange(6) * 210_000_000
    (episode,) = npz_episodes(write(tmp_path / "a.npz", stamps_ns=stamps, state=None))
    assert episode.states is None and np.array_equal(episode.stamps_ns, stamps)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write(tmp_path / f"episode_{number:03d}.npz")
    (tmp_path / "other.npz").write_bytes(b"not an episode")
    names = [episode.name for episode in npz_episodes(tmp_path)]
    assert names == ["episode_000", "episode_001", "episode_002"]


@pytest.mark.parametrize("place", ["file", "index"])
def test_a_statistics_key_gives_the_published_rate(tmp_path: Path, place: str) -> None:
    key = np.array("bridge_orig") if place == "file" else None
    write(tmp_path / "episode_0.npz", rate_hz=None, unnorm_key=key)
    if place == "index":
        (tmp_path / "index.json").write_text(json.dumps({"unnorm_key": "bridge_orig"}))
    assert npz_episodes(tmp_path)[0].rate_hz == 5


def test_a_rate_that_contradicts_the_stored_one_is_refused(tmp_path: Path) -> None:
    """It won, and made a wrong clock; steps are not resampled."""
    with pytest.raises(ConfigurationError, match=r"recorded at 5 Hz.*rate_hz is 3\. Leave"):
        npz_episodes(write(tmp_path / "a.npz"), rate_hz=3)
    assert npz_episodes(write(tmp_path / "a.npz"), rate_hz=5)[0].rate_hz == 5
    assert npz_episodes(write(tmp_path / "a.npz", rate_hz=None), rate_hz=3)[0].rate_hz == 3


def test_a_rate_is_never_invented(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Give rate_hz"):
        npz_episodes(write(tmp_path / "a.npz", rate_hz=None))
    with pytest.raises(ConfigurationError, match="greater than 0"):
        npz_episodes(write(tmp_path / "a.npz", rate_hz=np.float64(-5)))


def nan_at_step_4() -> np.ndarray:
    actions = formats.recording(1).actions.copy()
    actions[4, 2] = np.nan
    return actions


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"action": None}, "`action` is missing"),
        ({"action": np.zeros(6)}, r"`action` is float64 \(6,\)"),
        ({"action": np.zeros((0, 7))}, "`action` is float64"),
        ({"action": nan_at_step_4()}, "action of step 4 is"),
        ({"action": np.zeros((5, 7))}, "6 rows of `state` for 5 actions|6 increasing"),
        ({"state": np.full((6, 7), np.inf)}, "state of step 0"),
        ({"instruction": None}, "`instruction` is missing"),
        ({"instruction": np.array(["a", "b"])}, "must be one text"),
        ({"instruction": np.array("  ")}, "no instruction"),
        ({"image_primary_offsets": np.array([0, 1, 2])}, "increasing integers"),
        ({"image_primary_offsets": np.arange(7)}, "ends? with its length"),
        ({"image_primary_offsets": None}, "cameras: none"),
        ({"image_primary_jpeg": np.zeros(9, np.float32)}, "must be one row of uint8"),
        ({"stamps_ns": np.arange(6)}, "increasing integers above 0"),
        ({"rate_hz": np.array("5")}, "must be one number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        npz_episodes(write(tmp_path / "a.npz", **changes))


def test_an_empty_instruction_is_read_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "episode_0.npz", instruction=np.array(""))
    write(tmp_path / "episode_1.npz")
    read = npz_episodes(tmp_path, keep_unlabelled=True)
    assert [bool(episode.instruction) for episode in read] == [False, True]
    with pytest.raises(ConfigurationError, match="no instruction"):
        npz_episodes(tmp_path)


def test_a_damaged_picture_names_its_step(tmp_path: Path) -> None:
    arrays = formats.npz_arrays(formats.recording(1))
    pixels = arrays["image_primary_jpeg"].copy()
    pixels[arrays["image_primary_offsets"][3] + 1] ^= 0xFF
    (episode,) = npz_episodes(write(tmp_path / "a.npz", image_primary_jpeg=pixels))
    images = episode.open_images()
    assert len([next(images) for _ in range(3)]) == 3
    with pytest.raises(ImageError, match="step 3"):
        next(images)


def test_pictures_of_several_sizes_are_refused(tmp_path: Path) -> None:
    rec = formats.recording(1)
    pictures = [formats.encoded(image[: 48 - t], "PNG") for t, image in enumerate(rec.images)]
    changes = {
        "image_primary_jpeg": np.frombuffer(b"".join(pictures), np.uint8),
        "image_primary_offsets": np.cumsum([0, *map(len, pictures)]),
    }
    (episode,) = npz_episodes(write(tmp_path / "a.npz", **changes))
    with pytest.raises(
        ConfigurationError, match="step 1: an image of 64 x 47 pixels where 64 x 48"
    ):
        list(episode.open_images())


def test_objects_in_an_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not a readable \.npz"):
        npz_episodes(write(tmp_path / "a.npz", state=np.array([{"a": 1}], object)))


def test_a_member_without_an_array_header_is_refused(tmp_path: Path) -> None:
    """NumPy gives the bytes of such a member as they are; that ended in an AttributeError."""
    path = write(tmp_path / "a.npz", image_primary_offsets=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("image_primary_offsets.npy", b"no header")
    with pytest.raises(ConfigurationError, match="image_primary_offsets is no array"):
        npz_episodes(path)


def test_what_the_document_shows_is_what_is_read(tmp_path: Path, monkeypatch) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs/data_formats.md").read_text()
    section = text.partition("\n## npz\n")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    (episode,) = npz_episodes(tmp_path)
    assert (len(episode), episode.rate_hz) == (20, 5)
    assert next(episode.open_images()).shape == (240, 320, 3)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigurationError, match=r"not a readable \.npz"):
        npz_episodes(path)


def test_a_folder_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no episode_\*\.npz"):
        npz_episodes(tmp_path)
