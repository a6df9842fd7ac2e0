"""A bag that is there whole or not at all, and that can take over topics of another bag."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from openvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Writer
    from rosbags.typesys.store import Typestore


class ReplayWriter:
    """Writes an MCAP bag into a hidden folder beside its place, and moves it there when complete.

    Use it as a context; an exception inside leaves nothing behind.

    Attributes:
        path: Where the bag will be.
        last_ns: Latest bag time written so far; 0 = nothing yet.
    """

    def __init__(self, path: Path, typestore: Typestore) -> None:
        """Prepare a bag at `path`, a folder that must not exist.

        Raises:
            ConfigurationError: It exists.
        """
        if path.exists():
            raise ConfigurationError(f"{path} exists already. Choose another folder for the bag.")
        self.path = path
        self.last_ns = 0
        self._typestore = typestore
        self._connections: dict[tuple[str, str], Connection] = {}
        self._folder: Path
        self._writer: Writer

    def __enter__(self) -> ReplayWriter:
        """Open the bag.

        Raises:
            OSError: The folder around it cannot be written.
        """
        from rosbags import rosbag2

        self.path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{self.path.name}."
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path.parent))
        try:
            self._writer = rosbag2.Writer(
                self._folder / self.path.name,
                version=rosbag2.Writer.VERSION_LATEST,
                storage_plugin=rosbag2.StoragePlugin.MCAP,
            )
            self._writer.open()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Move the complete bag to its place; after an exception remove it."""
        try:
            if kind is None:
                self._writer.close()
                (self._folder / self.path.name).rename(self.path)
        finally:
            with contextlib.suppress(OSError):  # of a disk that is full; the first error is raised
                self._writer.abort()
            shutil.rmtree(self._folder, ignore_errors=True)

    def topic(self, name: str, message_type: str, *, is_latched: bool = False) -> Connection:
        """Return where to write messages of a topic of ours."""
        key = (name, message_type)
        if key not in self._connections:
            self._connections[key] = self._writer.add_connection(
                name,
                message_type,
                typestore=self._typestore,
                offered_qos_profiles=(_latched(),) if is_latched else (),
            )
        return self._connections[key]

    def copied_topic(self, recorded: Connection, typestore: Typestore) -> Connection:
        """Return where to write messages of a recorded topic, with its own definition and QoS.

        Args:
            recorded: From the reader of the other bag.
            typestore: Of that reader: used where the bag holds no definition.

        Raises:
            ConfigurationError: Nobody knows the definition of its type.
        """
        from rosbags.typesys import TypesysError

        key = (recorded.topic, recorded.msgtype)
        if key in self._connections:
            return self._connections[key]
        has_definition = bool(recorded.msgdef.data and recorded.digest)
        definition: dict[str, Any] = (
            {"msgdef": recorded.msgdef.data, "rihs01": recorded.digest}
            if has_definition
            else {"typestore": typestore}
        )
        ext: Any = recorded.ext
        try:
            self._connections[key] = self._writer.add_connection(
                recorded.topic,
                recorded.msgtype,
                serialization_format=ext.serialization_format,
                offered_qos_profiles=ext.offered_qos_profiles,
                **definition,
            )
        except (TypesysError, KeyError) as error:
            raise ConfigurationError(
                f"{recorded.topic} cannot be copied: its type {recorded.msgtype} is defined "
                "neither in the bag nor by a sourced ROS 2 package. Source the workspace that "
                "holds it, or write no bag."
            ) from error
        return self._connections[key]

    def write(self, rows: Iterator[tuple[int, Connection, bytes]]) -> None:
        """Append messages: bag time in nanoseconds, topic, CDR.

        Raises:
            OSError: The disk is full.
        """
        for stamp_ns, connection, serialized in rows:
            self.last_ns = max(self.last_ns, stamp_ns)
            self._writer.write(connection, stamp_ns, serialized)


def _latched() -> Qos:
    """The last message is kept for those who come late."""
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    never = QosTime(9_223_372_036, 854_775_807)  # RMW_DURATION_INFINITE
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL,
        never,
        never,
        QosLiveliness.AUTOMATIC,
        never,
        avoid_ros_namespace_conventions=False,
    )
