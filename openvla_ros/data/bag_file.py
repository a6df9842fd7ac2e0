"""rosbag2 files with MCAP storage: raw CDR in, message definitions included. No rosbag2 needed.

Written with `rosbags`, so AnyReader, Foxglove and `ros2 bag play` read them. This file does not
import rclpy: the recorder hands it serialised messages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvla_ros.errors import ConfigurationError, DependencyError
from openvla_ros.messages import compressed_to_rgb, image_to_rgb

if TYPE_CHECKING:
    import numpy as np
    from rosbags.highlevel import AnyReader
    from rosbags.typesys.store import Typestore

RAW_IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES = (RAW_IMAGE, COMPRESSED_IMAGE)
REPOSITORY_MSG = Path(__file__).resolve().parents[2] / "msg"


class BagFile:
    """One bag being written: topics are declared first, then messages arrive from any thread."""

    def __init__(self, path: Path, topics: dict[str, str]) -> None:
        """Create the bag.

        Args:
            path: Folder to create; it must not exist.
            topics: Topic name to message type, such as "std_msgs/msg/String".

        Raises:
            ConfigurationError: The folder exists, or a message type has no definition here.
            DependencyError: `rosbags` is not installed.
        """
        rosbag2 = _import_rosbag2()
        if path.exists():
            raise ConfigurationError(f"{path} exists already. Choose another folder for the bag.")
        typestore = typestore_for(topics.values())
        self.path = path
        self.counts = dict.fromkeys(topics, 0)
        self._lock = threading.Lock()
        self._writer = rosbag2.Writer(
            path,
            version=rosbag2.Writer.VERSION_LATEST,
            storage_plugin=rosbag2.StoragePlugin.MCAP,
        )
        self._writer.open()
        self._is_open = True
        self._connections = {
            topic: self._writer.add_connection(topic, msgtype, typestore=typestore)
            for topic, msgtype in topics.items()
        }

    def write(self, topic: str, stamp_ns: int, serialized: bytes) -> None:
        """Append one CDR message; after `close` it is dropped."""
        with self._lock:
            if self._is_open:
                self._writer.write(self._connections[topic], stamp_ns, serialized)
                self.counts[topic] += 1

    def close(self) -> None:
        """Flush, write the index and metadata.yaml. A second call does nothing."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._writer.close()


@contextmanager
def open_bag(path: Path) -> Iterator[AnyReader]:
    """Give a reader of a bag; message types come from the bag itself.

    Args:
        path: rosbag2 folder, or one .mcap or .db3 file.

    Raises:
        ConfigurationError: The bag is absent or cannot be read.
        DependencyError: `rosbags` is not installed.
    """
    _import_rosbag2()
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.rosbag2 import ReaderError

    if not path.exists():
        raise ConfigurationError(f"There is no bag at {path}.")
    try:
        with AnyReader([path]) as reader:
            yield reader
    except (AnyReaderError, ReaderError, OSError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as a bag ({type(error).__name__}: {error}). "
            "It must be a rosbag2 folder with metadata.yaml, or one .mcap or .db3 file."
        ) from error


def picture_to_rgb(message: Any, message_type: str) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of a message whose type is one of `IMAGE_TYPES`.

    Raises:
        ImageError: The picture cannot be decoded.
    """
    return compressed_to_rgb(message) if message_type == COMPRESSED_IMAGE else image_to_rgb(message)


def typestore_for(
    msgtypes: Iterable[str], find_definition: Callable[[str], str] | None = None
) -> Typestore:
    """Return a type store that knows `msgtypes` and everything they contain.

    Args:
        msgtypes: Names such as "openvla_ros/msg/VLAAction".
        find_definition: Type name to the text of its .msg file; by default the installed packages
            are searched, see `find_message_definition`.

    Raises:
        ConfigurationError: A definition is not found.
        DependencyError: `rosbags` is not installed.
    """
    _import_rosbag2()
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    find = find_definition or find_message_definition
    store = get_typestore(getattr(Stores, f"ROS2_{_distribution().upper()}", Stores.LATEST))
    found: dict[str, Any] = {}
    pending = list(msgtypes)
    while pending:
        name = pending.pop()
        if name in store.fielddefs or name in found:
            continue
        definition = get_types_from_msg(find(name), name)
        found.update(definition)
        pending.extend(_contained_types(definition[name][1]))
    if found:
        store.register(found)
    return store


def find_message_definition(msgtype: str) -> str:
    """Return the text of the .msg file of a type, from the sourced ROS 2 or this checkout.

    Raises:
        ConfigurationError: No sourced package has it.
    """
    package, _, name = msgtype.split("/")
    folders = [
        Path(prefix) / "share" / package / "msg"
        for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        if prefix
    ]
    if package == "openvla_ros":
        folders.append(REPOSITORY_MSG)
    for folder in folders:
        if (folder / f"{name}.msg").is_file():
            return (folder / f"{name}.msg").read_text(encoding="utf-8")
    raise ConfigurationError(
        f"The definition of {msgtype} is in none of the sourced ROS 2 packages, so it cannot be "
        f"written to a bag. Source the workspace that holds {package} and try again."
    )


def _contained_types(fields: Any) -> list[str]:
    from rosbags.interfaces import Nodetype

    names = []
    for _, (kind, detail) in fields:
        if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            kind, detail = detail[0]
        if kind == Nodetype.NAME:
            names.append(detail)
    return names


def _distribution() -> str:
    return os.environ.get("ROS_DISTRO", "jazzy")


def _import_rosbag2() -> Any:
    try:
        from rosbags import rosbag2
    except ImportError as error:
        raise DependencyError(
            "Reading and writing bags needs rosbags: pip install rosbags."
        ) from error
    return rosbag2
