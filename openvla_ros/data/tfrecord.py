"""TFRecord files and the tf.train.Example messages in them, read without TensorFlow.

A record is: length (8 bytes, little endian), its checksum (4), the data, its checksum (4). The data
is an Example: feature name to a list of bytes, float32 or int64. This file does not know what the
features mean.
Source: tensorflow @ v2.15.0, tensorflow/core/lib/io/record_writer.h and
tensorflow/core/example/{example,feature}.proto; protobuf's encoding guide for the wire format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from openvla_ros.data.crc32c import masked_crc32c
from openvla_ros.errors import ConfigurationError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_GZIP = b"\x1f\x8b"
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types
_KINDS = {1: "bytes", 2: "float", 3: "int64"}  # field numbers of Feature


@dataclass(frozen=True)
class RecordPlace:
    """Where the data of one record lies.

    Attributes:
        path: The file.
        start: Offset of the first byte of data.
        size: Bytes of data.
    """

    path: Path
    start: int
    size: int


def find_records(path: Path) -> list[RecordPlace]:
    """Return the place of every record, in order; the data is not read.

    Raises:
        ConfigurationError: The file cannot be read, is no TFRecord, or is cut short.
    """
    places = []
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            position = 0
            while position < end:
                place = RecordPlace(path, position + _HEADER.size, _record_size(file, position))
                position = place.start + place.size + _FOOTER.size
                if position > end:
                    _refuse(path, position - place.size, f"the file is cut short: {end} bytes")
                places.append(place)
                file.seek(position)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error}).") from error
    return places


def _record_size(file: BinaryIO, position: int) -> int:
    path, header = Path(file.name), file.read(_HEADER.size)
    if position == 0 and header.startswith(_GZIP):
        _refuse(path, 0, "the file is compressed with gzip; decompress it first")
    if len(header) < _HEADER.size:
        _refuse(path, position, "the file is cut short within the head of a record")
    size, checksum = _HEADER.unpack(header)
    if masked_crc32c(header[:8]) != checksum:
        _refuse(path, position, "the length of a record does not fit its checksum")
    return int(size)


def read_record(place: RecordPlace) -> bytes:
    """Return the data of one record, checked.

    Raises:
        ConfigurationError: The file cannot be read, or the data does not fit its checksum.
    """
    try:
        with place.path.open("rb") as file:
            file.seek(place.start)
            data, footer = file.read(place.size), file.read(_FOOTER.size)
    except OSError as error:
        raise ConfigurationError(f"{place.path} cannot be read ({error}).") from error
    if len(data) < place.size or len(footer) < _FOOTER.size:
        _refuse(place.path, place.start, "the file is cut short within a record")
    if (masked_crc32c(data),) != _FOOTER.unpack(footer):
        _refuse(place.path, place.start, "the data of a record does not fit its checksum")
    return data


def _refuse(path: Path, offset: int, why: str) -> NoReturn:
    raise ConfigurationError(
        f"{path} at byte {offset}: {why}. It is no TFRecord, or it was damaged or not copied "
        "completely; fetch it again."
    )


@dataclass(frozen=True)
class Feature:
    """The list of one feature, still in the record's own bytes.

    Attributes:
        name: Its name, for errors.
        kind: "bytes", "float", "int64", or "" when the feature is empty.
        source: What it was read from.
        spans: Wire type, first and last offset in `data` of each stored piece.
        data: The record.
    """

    name: str
    kind: str
    source: RecordPlace
    spans: tuple[tuple[int, int, int], ...]
    data: memoryview

    def byte_strings(self) -> list[memoryview]:
        """Return the values of a list of bytes, without a copy.

        Raises:
            ConfigurationError: It holds something else.
        """
        self._require("bytes", (_DELIMITED,))
        return [self.data[start:end] for _, start, end in self.spans]

    def floats(self) -> np.ndarray:
        """Return the values of a list of floats: (n,) float32.

        Raises:
            ConfigurationError: It holds something else.
        """
        self._require("float", (_DELIMITED, _FIXED32))
        for _, start, end in self.spans:
            if (end - start) % 4:
                self._refuse(start, f"{end - start} bytes are no list of float32")
        joined = b"".join(self.data[start:end] for _, start, end in self.spans)
        return np.frombuffer(joined, "<f4").astype(np.float32)

    def integers(self) -> np.ndarray:
        """Return the values of a list of integers: (n,) int64.

        Raises:
            ConfigurationError: It holds something else.
        """
        self._require("int64", (_DELIMITED, _VARINT))
        values = []
        for _, start, end in self.spans:
            while start < end:
                value, start = _varint(self.data, start, end, self.source)
                values.append(value)
        return np.array(values, np.uint64).astype(np.int64)

    def _require(self, kind: str, wire_types: tuple[int, ...]) -> None:
        if self.kind not in (kind, ""):
            self._refuse(0, f"it holds {self.kind} values, not {kind}")
        for wire_type, start, _ in self.spans:
            if wire_type not in wire_types:
                self._refuse(start, f"wire type {wire_type} within a list of {kind}")

    def _refuse(self, offset: int, why: str) -> NoReturn:
        _refuse(self.source.path, self.source.start + offset, f"feature {self.name!r}: {why}")


def parse_example(data: bytes, source: RecordPlace) -> dict[str, Feature]:
    """Return the features of a tf.train.Example by name.

    Args:
        data: What `read_record` gave.
        source: Where it was read from, for errors.

    Raises:
        ConfigurationError: Not an Example; the text names the file and the offset.
    """
    view = memoryview(data)
    found: dict[str, Feature] = {}
    for start, end in _children(view, 0, len(data), 1, source):  # Example.features
        for entry_start, entry_end in _children(view, start, end, 1, source):  # the map
            feature = _parse_entry(view, entry_start, entry_end, source)
            found[feature.name] = feature
    return found


def _parse_entry(view: memoryview, start: int, end: int, source: RecordPlace) -> Feature:
    keys = list(_children(view, start, end, 1, source))
    values = list(_children(view, start, end, 2, source))
    try:
        name = bytes(view[slice(*keys[-1])]).decode() if keys else ""
    except UnicodeDecodeError:
        _refuse(source.path, source.start + start, "the name of a feature is no UTF-8")
    kind, spans = "", []
    for value_start, value_end in values[-1:]:
        for number, wire_type, first, last in _fields(view, value_start, value_end, source):
            if number not in _KINDS:
                continue
            if wire_type != _DELIMITED or kind:
                _refuse(source.path, source.start + first, f"feature {name!r} is no single list")
            kind = _KINDS[number]
            for inner, inner_type, *span in _fields(view, first, last, source):
                if inner == 1:
                    spans.append((inner_type, span[0], span[1]))
    return Feature(name, kind, source, tuple(spans), view)


def _children(
    view: memoryview, start: int, end: int, wanted: int, source: RecordPlace
) -> Iterator[tuple[int, int]]:
    """First and last offset of each message or text with the field number `wanted`."""
    for number, wire_type, first, last in _fields(view, start, end, source):
        if number == wanted:
            if wire_type != _DELIMITED:
                _refuse(source.path, source.start + first, "it is not a tf.train.Example")
            yield first, last


def _fields(
    view: memoryview, start: int, end: int, source: RecordPlace
) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, first and last offset of each field of one message."""
    while start < end:
        tag, first = _varint(view, start, end, source)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _DELIMITED:
            size, first = _varint(view, first, end, source)
            last = first + size
        elif wire_type == _VARINT:
            last = _varint(view, first, end, source)[1]
        elif wire_type in (_FIXED32, _FIXED64):
            last = first + (4 if wire_type == _FIXED32 else 8)
        else:
            _refuse(source.path, source.start + start, f"wire type {wire_type} in an Example")
        if number == 0 or last > end:
            _refuse(source.path, source.start + start, "a field reaches over the end of an Example")
        yield number, wire_type, first, last
        start = last


def _varint(view: memoryview, start: int, end: int, source: RecordPlace) -> tuple[int, int]:
    """The number that begins at `start`, and the offset behind it."""
    value = 0
    for shift, position in enumerate(range(start, min(end, start + 10))):
        byte = view[position]
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
    _refuse(source.path, source.start + start, "a number in an Example has no end")
