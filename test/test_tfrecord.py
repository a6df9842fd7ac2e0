"""TFRecord framing and tf.train.Example, against an encoder of their own and the real file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data.tfrecord import RecordPlace, find_records, parse_example, read_record
from openvla_ros.errors import ConfigurationError

PLACE = RecordPlace(Path("made.tfrecord"), 100, 0)
PICTURES = [b"first", b"", b"third\0"]


def parsed(data: bytes):
    return parse_example(data, PLACE)


def test_lists_of_all_kinds_come_back() -> None:
    floats = np.array([0.1, -2.5, np.inf, 3e-39], np.float32)
    integers = np.array([0, 1, -1, 2**62, -(2**63)], np.int64)
    found = parsed(formats.example({"b": PICTURES, "f": floats, "i": integers}))
    assert [bytes(value) for value in found["b"].byte_strings()] == PICTURES
    assert np.array_equal(found["f"].floats(), floats) and found["f"].floats().dtype == np.float32
    assert np.array_equal(found["i"].integers(), integers)


def test_numbers_that_are_not_packed_come_back() -> None:
    """Protobuf allows either; older writers give one field per number."""
    one_by_one = b"".join(b"\x0d" + np.float32(x).tobytes() for x in (1.5, -2.0))
    feature = formats.delimited(2, formats.delimited(2, one_by_one))
    entry = formats.delimited(1, formats.delimited(1, b"f") + feature)
    assert parsed(formats.delimited(1, entry))["f"].floats().tolist() == [1.5, -2.0]


def test_an_empty_feature_is_an_empty_list_of_any_kind() -> None:
    entry = formats.delimited(1, formats.delimited(1, b"e") + formats.delimited(2, b""))
    feature = parsed(formats.delimited(1, entry))["e"]
    assert feature.byte_strings() == []
    assert feature.floats().size == feature.integers().size == 0


def test_unknown_fields_are_passed_over() -> None:
    data = formats.example({"b": [b"x"]})
    strange = formats.varint(9 << 3) + formats.varint(7) + formats.varint(10 << 3 | 1) + bytes(8)
    assert bytes(parsed(strange + data)["b"].byte_strings()[0]) == b"x"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x0a\x80", "has no end"),
        (b"\x0a\x05ab", "reaches over the end"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01", "not a tf.train.Example"),
        (b"\x00\x00", "reaches over the end"),
        (b"\xff" * 12, "has no end"),
        (formats.delimited(1, formats.delimited(1, formats.delimited(1, b"\xff"))), "no UTF-8"),
    ],
)
def test_a_malformed_example_is_refused_with_file_and_offset(data: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"made\.tfrecord at byte 1\d\d: .*{why}"):
        parsed(data)


def test_asking_for_the_wrong_kind_names_the_feature() -> None:
    found = parsed(formats.example({"b": [b"x"], "f": np.zeros(2, np.float32)}))
    with pytest.raises(ConfigurationError, match="'b': it holds bytes values, not float"):
        found["b"].floats()
    with pytest.raises(ConfigurationError, match="'f': it holds float values, not int64"):
        found["f"].integers()


def written(tmp_path: Path, *records: bytes) -> Path:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(formats.framed(record) for record in records))
    return path


def test_records_come_back_in_order(tmp_path: Path) -> None:
    records = [b"one", b"", bytes(range(256)) * 40]
    path = written(tmp_path, *records)
    assert [read_record(place) for place in find_records(path)] == records


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    assert find_records(written(tmp_path)) == []


def test_every_truncation_is_noticed_except_between_records(tmp_path: Path) -> None:
    path = written(tmp_path, b"first record", b"second")
    whole = path.read_bytes()
    boundary = len(formats.framed(b"first record"))
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        if size == boundary:
            assert len(find_records(path)) == 1
            continue
        with pytest.raises(ConfigurationError, match=rf"{re.escape(str(path))} at byte \d+: "):
            find_records(path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, b"record")
    whole = bytearray(path.read_bytes())
    for bit in range(8 * len(whole)):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        with pytest.raises(ConfigurationError):
            [read_record(place) for place in find_records(path)]
        whole[bit // 8] ^= 1 << bit % 8


def test_a_compressed_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"\x1f\x8b\x08" + bytes(40))
    with pytest.raises(ConfigurationError, match="gzip"):
        find_records(path)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        find_records(tmp_path / "absent.tfrecord")
