"""Whether a network looks at its image, answers repeatably, and answers the same to any draft."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from openvla_ros.engine.exactness import ActionDecoder
from openvla_ros.errors import SelfTestError
from openvla_ros.model.processing import ProcessedInput

#: Logits of two images must differ by this share of their range, or the image has no influence.
_SENSITIVITY = 1e-4
_SIDE = 256
_COARSE = 12  # px of a frame of smooth random content before it is enlarged


def contrary_frames() -> dict[str, np.ndarray]:
    """Return black, white and noise, (256, 256, 3) uint8 each."""
    shape = (_SIDE, _SIDE, 3)
    return {
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    }


def smooth_frames(count: int) -> list[np.ndarray]:
    """Return the same frames of smooth random content each time, (256, 256, 3) uint8."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, _COARSE, _COARSE, 3), np.uint8)
    size = (_SIDE, _SIDE)
    return [np.array(Image.fromarray(c).resize(size, Image.Resampling.BICUBIC)) for c in coarse]


def require_sound(
    decoder: ActionDecoder, inputs: Mapping[str, ProcessedInput], action_dim: int
) -> None:
    """Return when the network demonstrably looks at its image and answers repeatably.

    Args:
        decoder: Around the network.
        inputs: By name, of frames that have nothing in common; at least two.
        action_dim: Number of ids of an action.

    Raises:
        SelfTestError: Logits are not finite, two frames give the same ones, the same frame gives
            different ids, or a draft changes them.
    """
    plain = {
        name: decoder.generate_plainly(given.input_ids, given.pixel_values, action_dim)
        for name, given in inputs.items()
    }
    for name, tokens in plain.items():
        if not bool(torch.isfinite(tokens.logits).all()):
            raise SelfTestError(
                f"A {name} frame gives logits that are not finite. The weights or the number "
                "format are unusable; try dtype bfloat16 or float32."
            )
    for first, second in itertools.combinations(plain, 2):
        _require_difference(first, second, plain[first].logits[0], plain[second].logits[0])
    for name, given in inputs.items():
        again = decoder.generate_plainly(given.input_ids, given.pixel_values, action_dim)
        if again.token_ids != plain[name].token_ids:
            raise SelfTestError(
                f"The same {name} frame gave {plain[name].token_ids} and then {again.token_ids}: "
                "this device does not compute repeatably."
            )
        for draft in plain.values():
            found = decoder.generate_drafted(given.input_ids, given.pixel_values, draft.token_ids)
            if found.token_ids != plain[name].token_ids and not decoder.tolerance:
                raise SelfTestError(
                    f"A {name} frame gives {plain[name].token_ids}, and with the draft "
                    f"{draft.token_ids} it gives {found.token_ids}. Use drafts: false."
                )


def _require_difference(first: str, second: str, a: torch.Tensor, b: torch.Tensor) -> None:
    difference = float((a - b).abs().max())
    needed = _SENSITIVITY * float(a.max() - a.min())
    if difference <= needed:
        raise SelfTestError(
            f"The model does not look at its image: {first} and {second} frames give the same "
            f"logits (difference {difference:.2g}, needed {needed:.2g}). It must not drive a "
            "robot. Check the checkpoint and whatever changes pixel_values on the way in."
        )
