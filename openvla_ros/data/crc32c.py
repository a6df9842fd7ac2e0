"""CRC-32C (Castagnoli), as TFRecord files carry it, fast enough for whole recordings.

A checksum of this kind is linear: pieces of the data are run through side by side, as the lanes of
one NumPy array, and then joined. Padding in front costs nothing, since zeros leave a register of
zero as it is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_ONES = 0xFFFFFFFF
_MASK_DELTA = 0xA282EAD8  # TFRecord's: a checksum of data that holds checksums stays a good one
_MOST_LANES = 1 << 15


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of the bytes.

    Source: RFC 3720, section 12.1 and appendix B.4 (test vectors).
    """
    size = len(data)
    if size < 8:
        return _small(bytes(data)) ^ _ONES
    lanes = 1
    while lanes < _MOST_LANES and lanes * lanes < 4 * size:
        lanes *= 2
    words = -(-size // (2 * lanes))  # of 16 bit, per lane
    padded = np.zeros(2 * lanes * words, np.uint8)
    padded[-size:] = np.frombuffer(data, np.uint8)
    # A register that starts with ones is a register of zeros that finds the first bytes inverted.
    start = len(padded) - size
    padded[start : start + 4] ^= 0xFF
    columns = np.ascontiguousarray(padded.view("<u2").reshape(lanes, words).T)  # (words, lanes)
    table = _word_table()
    register = np.zeros(lanes, np.uint32)
    for column in columns:
        register = table[(register ^ column) & 0xFFFF] ^ (register >> 16)
    return _joined(register, 2 * words) ^ _ONES


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the checksum in the form in which a TFRecord stores it.

    Source: tensorflow @ v2.15.0, tensorflow/core/lib/hash/crc32c.h (Mask).
    """
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _ONES


def _small(data: bytes) -> int:
    register = _ONES
    for byte in data:
        register = int(_byte_table()[(register ^ byte) & 0xFF]) ^ (register >> 8)
    return register


def _joined(registers: np.ndarray, size: int) -> int:
    """The register after all lanes of `size` bytes, one after another; lanes are a power of two."""
    shift = _shift_by(size)
    while len(registers) > 1:
        registers = _applied(shift, registers[0::2]) ^ registers[1::2]
        shift = _applied(shift, shift)
    return int(registers[0])


@lru_cache(maxsize=64)
def _shift_by(size: int) -> np.ndarray:
    """(32,) uint32: what `size` bytes of zero make of each single bit of a register."""
    total = np.uint32(1) << np.arange(32, dtype=np.uint32)  # zero bytes change nothing
    doubled = _byte_table()[total & 0xFF] ^ (total >> 8)  # one byte
    while size:
        if size & 1:
            total = _applied(doubled, total)
        doubled = _applied(doubled, doubled)
        size >>= 1
    return total


def _applied(matrix: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """Each register as the sum (exclusive or) of the images of its bits."""
    bits = (registers[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return np.bitwise_xor.reduce(bits * matrix, axis=1)


@lru_cache(maxsize=1)
def _byte_table() -> np.ndarray:
    register = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        register = (register >> 1) ^ (np.uint32(_POLYNOMIAL) * (register & 1))
    return register


@lru_cache(maxsize=1)
def _word_table() -> np.ndarray:
    table = _byte_table()
    register = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        register = table[register & 0xFF] ^ (register >> 8)
    return register
