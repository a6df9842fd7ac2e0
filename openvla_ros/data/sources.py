"""Whatever a user names as a recording, as episodes: what it is, is decided by what it contains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from openvla_ros.data import lerobot_meta, npz_episodes, rlds
from openvla_ros.data.bag_episodes import bag_episodes
from openvla_ros.data.episode import Episode
from openvla_ros.data.lerobot import lerobot_episodes
from openvla_ros.data.topics import TopicConfig
from openvla_ros.errors import ConfigurationError

BAG, LEROBOT, RLDS, NPZ = "rosbag2", "LeRobot", "RLDS", "npz"
ACCEPTED = """\
- rosbag2: a folder with metadata.yaml, or one .mcap or .db3 file;
- LeRobot v2.1 or v3.0: a folder with meta/info.json;
- RLDS: a folder with features.json or *.tfrecord* files, or one such file;
- npz: a folder with episode_*.npz, or one .npz file."""
# How a file of each kind begins. A TFRecord has no mark: it is known by its name, and its checksums
# are looked at right away.
_MAGIC = {b"\x89MCAP0\r\n": BAG, b"SQLite format 3\0": BAG, b"PK\x03\x04": NPZ}


def open_episodes(
    source: Path,
    *,
    topics: TopicConfig | None = None,
    camera: str = "",
    rate_hz: float | None = None,
    pose_key: str = "",
    keep_unlabelled: bool = False,
    transform: str = "",
    jpeg_as_tensorflow: bool = True,
) -> list[Episode]:
    """Return the episodes of a recording.

    Args:
        source: A folder or file of one of the kinds in `ACCEPTED`.
        topics: For bags: which topic is what. None = the defaults.
        camera: Which camera, for everything but bags; "" = the only one, or the "primary".
        rate_hz: Steps per second, for RLDS and npz where it is not stored. A LeRobot dataset says
            it itself, and a bag is resampled to the rate in `topics`.
        pose_key: For LeRobot and RLDS: the feature that is the pose of the end effector.
        keep_unlabelled: Return steps whose instruction is empty too, instead of refusing them.
        transform: For RLDS: how the features of a step become OpenVLA's seven numbers, by the name
            of its dataset, such as "bridge_orig".
        jpeg_as_tensorflow: For RLDS: decode JPEG bit for bit as TensorFlow does, as OpenVLA was
            trained; False = as the node and all other readers do.

    Raises:
        ConfigurationError: Nothing there, none or several of the kinds, an option that this kind
            does not have, or what its reader refuses.
        DependencyError: A library for this kind is not installed.
    """
    kind = source_kind(source)
    if kind != RLDS and transform:
        raise ConfigurationError(
            f"{source}: {kind} does not take transform ({transform!r}): it is for RLDS datasets of "
            "Open X-Embodiment. Leave it out; the action is read as it is stored."
        )
    if kind == BAG:
        _refuse_options(source, kind, camera=camera, rate_hz=rate_hz, pose_key=pose_key)
        return bag_episodes(source, topics or TopicConfig())
    if kind == LEROBOT:
        episodes = lerobot_episodes(
            source, camera, pose_key=pose_key, keep_unlabelled=keep_unlabelled
        )
        _require_same_rate(source, episodes, rate_hz)
    elif kind == RLDS:
        episodes = rlds.rlds_episodes(
            source,
            camera,
            rate_hz=rate_hz,
            pose_key=pose_key,
            keep_unlabelled=keep_unlabelled,
            transform=transform,
            jpeg_as_tensorflow=jpeg_as_tensorflow,
        )
    else:
        _refuse_options(source, kind, pose_key=pose_key)
        episodes = npz_episodes.npz_episodes(
            source, camera, rate_hz=rate_hz, keep_unlabelled=keep_unlabelled
        )
    if not episodes:
        raise ConfigurationError(f"{source} holds no episodes.")
    return episodes


def find_recordings(path: Path) -> list[Path]:
    """Return what lies at a path: the recording itself, or those that a folder holds, by name.

    Raises:
        ConfigurationError: The folder also holds one in which there is no recording.
    """
    if not path.is_dir() or _kinds_of_folder(path):
        return [path]
    inside = sorted(path.iterdir())
    folders = [entry for entry in inside if entry.is_dir()]
    files = [entry for entry in inside if entry.is_file() and _kinds_of_file(entry)]
    empty = [entry.name for entry in folders if not _kinds_of_folder(entry)]
    if empty and len(empty) < len(folders) + len(files):
        raise ConfigurationError(
            f"{path} holds recordings, and folders without one: {', '.join(empty)}. Move them "
            "elsewhere, so that nothing is left out unnoticed."
        )
    return sorted([*folders, *files]) if not empty and (folders or files) else [path]


def list_recordings(paths: Iterable[Path]) -> list[Path]:
    """Return what lies at several paths; see `find_recordings`."""
    return [recording for path in paths for recording in find_recordings(path)]


def source_kind(source: Path) -> str:
    """Return which of the kinds a source is: `BAG`, `LEROBOT`, `RLDS` or `NPZ`.

    Raises:
        ConfigurationError: Nothing there, or none or several of them.
    """
    if not source.exists():
        raise ConfigurationError(f"There is nothing at {source}. Accepted are:\n{ACCEPTED}")
    kinds = _kinds_of_folder(source) if source.is_dir() else _kinds_of_file(source)
    if len(kinds) == 1:
        return kinds[0]
    found = f"could be any of {', '.join(kinds)}" if kinds else "is no recording that can be read"
    raise ConfigurationError(f"{source} {found}. Accepted are:\n{ACCEPTED}")


def _kinds_of_folder(folder: Path) -> list[str]:
    signs = {
        BAG: (folder / "metadata.yaml").is_file(),
        LEROBOT: (folder / lerobot_meta.INFO).is_file(),
        RLDS: (folder / rlds.FEATURES).is_file() or any(folder.glob("*.tfrecord*")),
        NPZ: any(folder.glob(npz_episodes.PATTERN)),
    }
    return [kind for kind, is_there in signs.items() if is_there]


def _kinds_of_file(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error}).") from error
    kinds = [kind for magic, kind in _MAGIC.items() if start.startswith(magic)]
    return kinds or ([RLDS] if ".tfrecord" in path.name else [])


def _refuse_options(source: Path, kind: str, **given: object) -> None:
    names = [name for name, value in given.items() if value not in ("", None)]
    if names:
        where = "its topic file says this" if kind == BAG else "its arrays have fixed names"
        raise ConfigurationError(f"{source}: {kind} does not take {', '.join(names)}: {where}.")


def _require_same_rate(source: Path, episodes: list[Episode], rate_hz: float | None) -> None:
    """A LeRobot dataset is not resampled: another rate would be a wrong clock."""
    if rate_hz is not None and any(episode.rate_hz != rate_hz for episode in episodes):
        raise ConfigurationError(
            f"{source} was recorded at {episodes[0].rate_hz:g} Hz (fps in {lerobot_meta.INFO}), "
            f"and rate_hz is {rate_hz:g}. Leave rate_hz out."
        )
