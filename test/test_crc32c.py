"""CRC-32C: the vectors of RFC 3720, and agreement with the definition at every length."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.data.crc32c import crc32c, masked_crc32c


def by_definition(data: bytes) -> int:
    """One bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_equals_the_definition_at_every_small_length_and_across_lane_counts() -> None:
    data = np.random.default_rng(3).integers(0, 256, 16_385).astype(np.uint8).tobytes()
    for size in [*range(70), 255, 256, 257, 1023, 4097, 16385]:
        assert crc32c(data[:size]) == by_definition(data[:size]), size


def test_every_flipped_bit_changes_the_checksum() -> None:
    data = bytearray(np.random.default_rng(4).integers(0, 256, 70).astype(np.uint8))
    whole = crc32c(bytes(data))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert crc32c(bytes(data)) != whole, bit
        data[bit // 8] ^= 1 << bit % 8


def test_mask_is_the_one_of_tfrecord() -> None:
    """The first eight bytes of every record are a length, followed by its masked checksum."""
    rotated = ((0xE3069283 >> 15) | (0xE3069283 << 17)) & 0xFFFFFFFF
    assert masked_crc32c(b"123456789") == (rotated + 0xA282EAD8) & 0xFFFFFFFF
