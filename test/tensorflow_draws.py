"""The numbers that TensorFlow's stateless functions draw from a seed, for tests against its output.

Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
keyed as TensorFlow 2.15 keys it: the seed is scrambled by one Philox block first.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.training.augmentation import (
    BRIGHTNESS,
    CONTRAST,
    CROP_SIDE,
    HUE,
    SATURATION,
    Augmentation,
)

_WORD = 2**32
_MULTIPLIERS, _WEYL, _ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
_SCRAMBLING_KEY = (0x3EC8F720, 0x02461E29)

Seed = tuple[int, int]


def augmentation_of(seed: Seed) -> Augmentation:
    """Return the numbers that OpenVLA's augmentation draws from a seed: a new seed before each."""
    seeds = []
    for _ in range(5):
        seed = next_seed(seed)
        seeds.append(seed)
    return Augmentation(
        crop_offset=uniform(seeds[0], 0.0, np.float32(1) - CROP_SIDE),
        brightness=uniform(seeds[1], -BRIGHTNESS, BRIGHTNESS),
        contrast=uniform(seeds[2], *CONTRAST),
        saturation=uniform(seeds[3], *SATURATION),
        hue=uniform(seeds[4], -HUE, HUE),
    )


def uniform(seed: Seed, low: float, high: float) -> float:
    """Return tf.random.stateless_uniform((), seed, low, high)."""
    mantissa = _draw(seed)[0] & 0x7FFFFF
    share = np.uint32(127 << 23 | mantissa).view(np.float32) - np.float32(1)
    return float(share * (np.float32(high) - np.float32(low)) + np.float32(low))


def next_seed(seed: Seed) -> Seed:
    """Return tf.random.stateless_uniform((2,), seed, maxval=int32.max, dtype=int32)."""
    first, second, *_ = _draw(seed)
    return first % (2**31 - 1), second % (2**31 - 1)


def _draw(seed: Seed) -> tuple[int, int, int, int]:
    """Return the first four words that a seed gives."""
    counter = [word for part in seed for word in (part % _WORD, (part >> 32) % _WORD)]
    first, second, third, fourth = _philox(counter, _SCRAMBLING_KEY)
    return _philox([0, 0, third, fourth], (first, second))


def _philox(counter: list[int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    a, b, c, d = counter
    for _ in range(_ROUNDS):
        high, low = zip(
            *(divmod(m * x, _WORD) for m, x in zip(_MULTIPLIERS, (a, c), strict=True)), strict=True
        )
        a, b, c, d = high[1] ^ b ^ key[0], low[1], high[0] ^ d ^ key[1], low[0]
        key = ((key[0] + _WEYL[0]) % _WORD, (key[1] + _WEYL[1]) % _WORD)
    return a, b, c, d
