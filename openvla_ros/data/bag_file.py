"""rosbag2 files with MCAP storage: raw CDR in, message definitions included. No rosbag2 needed.

Written with `rosbags`, so AnyReader, Foxglove and `ros2 bag play` read them. This file does not
import rclpy: the recorder hands it serialised messages.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvla_ros.data.unpacked_bag import import_zstd, unpacked
from openvla_ros.errors import ConfigurationError, DependencyError
from openvla_ros.messages import compressed_to_rgb, image_to_rgb

if TYPE_CHECKING:
    import numpy as np
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection
    from rosbags.typesys.store import Typestore

RAW_IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES = (RAW_IMAGE, COMPRESSED_IMAGE)
MAX_QUOTED = 300  # characters of a library's error: it may quote the file
LATEST_NS = 2**62  # the year 2116
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


class BagReader:
    """One bag that is open: whatever is wrong with its bytes becomes a ConfigurationError."""

    def __init__(self, path: Path, reader: AnyReader) -> None:
        """Read from `reader`, which is open and stays somebody else's to close."""
        self.path = path
        self.connections: list[Connection] = list(reader.connections)
        self.typestore: Typestore = reader.typestore
        self._reader = reader

    def messages(
        self,
        connections: Collection[Connection] = (),
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield connection, bag time [ns] and CDR of every message, in order of bag time.

        Args:
            connections: Those to read; none = all.
            start: Only messages at or after this time [ns]; chunks before it are not read.
            stop: Only messages before this time [ns].

        Raises:
            ConfigurationError: The bag breaks off, or is damaged; what came before was read.
        """
        rows = self._reader.messages(connections, start, stop)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except _damage() as error:
                raise _unreadable(self.path, error) from error
            _, bag_ns, raw = row  # of SQLite they have whatever type was stored
            if not (isinstance(bag_ns, int) and 0 <= bag_ns < LATEST_NS and isinstance(raw, bytes)):
                raise ConfigurationError(
                    f"{self.path} is damaged: a message on {row[0].topic} has the bag time "
                    f"{str(bag_ns)[:MAX_QUOTED]} ns, which no clock shows, or is no message at all."
                )
            yield row

    def deserialize(self, raw: bytes, message_type: str) -> Any:
        """Return a message; its arrays are views of `raw`: a picture is not copied.

        Raises:
            ConfigurationError: The bytes are no message of this type.
        """
        try:
            return self._reader.deserialize(memoryview(raw), message_type)  # type: ignore[arg-type]
        except _damage() as error:
            raise _unreadable(self.path, error) from error


@contextmanager
def open_bag(path: Path) -> Iterator[BagReader]:
    """Give a reader of a bag; message types come from the bag itself.

    Bags of older distributions carry no definitions: there the sourced ROS 2 is asked.

    Args:
        path: rosbag2 folder, or one .mcap or .db3 file.

    Raises:
        ConfigurationError: The bag is absent or cannot be read.
        DependencyError: `rosbags` is not installed.
    """
    _import_rosbag2()
    if not path.exists():
        raise ConfigurationError(f"There is no bag at {path}.")
    try:
        held = unpacked(path)
    except _damage() as error:
        raise _unreadable(path, error) from error
    reader = _opened(path, Path(held.name) if held else path)
    try:
        yield BagReader(path, reader)
    finally:
        reader.close()


def _opened(path: Path, folder: Path) -> AnyReader:
    """A reader of `folder`, where the bag that the user calls `path` is."""
    from rosbags.highlevel import AnyReader, AnyReaderError

    try:
        try:
            reader = AnyReader([folder])
            reader.open()
        except AnyReaderError:  # no definitions inside, for example; else it fails again
            reader = AnyReader([folder], default_typestore=_known_types())
            reader.open()
    except _damage() as error:
        raise _unreadable(path, error) from error
    return reader


@cache
def _known_types() -> Typestore:
    return typestore_for(f"openvla_ros/msg/{file.stem}" for file in REPOSITORY_MSG.glob("*.msg"))


@cache
def _damage() -> tuple[type[BaseException], ...]:
    """What `rosbags` and the libraries below it raise on bytes that are no bag.

    Found by reading damaged copies (test_bag_fuzz.py): a length of 2**60 is a MemoryError, a
    definition with a broken name a SyntaxError.
    """
    import apsw
    from rosbags.highlevel import AnyReaderError
    from rosbags.rosbag1 import ReaderError as Ros1ReaderError
    from rosbags.rosbag2 import ReaderError
    from rosbags.serde import SerdeError
    from rosbags.typesys import TypesysError

    readers = (AnyReaderError, ReaderError, Ros1ReaderError)
    parsers = (*readers, SerdeError, TypesysError, import_zstd().ZstdError, apsw.Error)
    bytes_and_numbers = (ValueError, TypeError, LookupError, ArithmeticError, struct.error)
    sizes = (OSError, EOFError, MemoryError, RuntimeError)  # RuntimeError: lz4, and deep nesting
    definitions = (AssertionError, AttributeError, NameError, SyntaxError)
    return (*parsers, *bytes_and_numbers, *sizes, *definitions)


def _unreadable(path: Path, error: BaseException) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read as a bag ({type(error).__name__}: {str(error)[:MAX_QUOTED]}). "
        "It must be a rosbag2 folder with metadata.yaml, or one .mcap or .db3 file, and it must be "
        "whole: a recording that was killed lacks its end (`mcap recover` and `ros2 bag reindex` "
        "rescue what is there)."
    )


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
