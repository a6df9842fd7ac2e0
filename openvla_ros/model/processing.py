"""Image and instruction to tensors, bit for bit as the checkpoint was trained and published.

`ImageProcessor` follows preprocessor_config.json; `OpenVLAProcessor` adds the prompt and its ids.
The same objects serve training, replay and the node.
Sources: openvla @ c8f03f4, prismatic/extern/hf/processing_prismatic.py; torchvision's geometry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from openvla_ros.errors import CheckpointError, ImageError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.image_options import OPTIONS_KEY, ImageOptions
from openvla_ros.model.prompts import build_prompt

PROCESSOR_FILE = "preprocessor_config.json"

#: What Llama's tokenizer puts before the first action token in training, and its id there.
EMPTY_TOKEN = "▁"
EMPTY_TOKEN_ID = 29871

_STRATEGIES = ("resize-naive", "resize-crop", "letterbox")
_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

#: Mean and standard deviation that each kind of tower was trained with, by a part of its timm id.
_PIXEL_STATISTICS = {
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "_clip_": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # SigLIP and ImageNet-21k
}


@dataclass(frozen=True)
class TowerTransform:
    """What one vision tower does to the image.

    Attributes:
        resize: (height, width), or a single number for the shorter side.
        interpolation: Pillow's resampling code (3 is bicubic).
        crop: (height, width) of the central crop.
        mean: Per channel, on values in [0, 1].
        std: Per channel.

    Raises:
        ValueError: A number that no image can be brought to.
    """

    resize: tuple[int, int] | int
    interpolation: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS.values():
            raise ValueError(f"interpolation {self.interpolation} is not one of 0 to 5")
        if len(self.mean) != 3 or not np.isfinite(self.mean).all():
            raise ValueError(f"mean must be three finite numbers, not {list(self.mean)}")
        if len(self.std) != 3 or not np.isfinite(self.std).all() or min(self.std) <= 0:
            raise ValueError(f"std must be three numbers above 0, not {list(self.std)}")

    @property
    def geometry(self) -> tuple[object, ...]:
        """What decides the result of `resized`: towers that share it see the same picture."""
        return self.resize, self.interpolation, self.crop

    def normalize(self, resized: Image.Image, pixels: np.ndarray) -> None:
        """Write what `resized` returned into `pixels`, (3, h, w) float32."""
        np.divide(np.asarray(resized).transpose(2, 0, 1), np.float32(255), pixels, dtype=np.float32)
        pixels -= np.asarray(self.mean, np.float32)[:, None, None]
        pixels /= np.asarray(self.std, np.float32)[:, None, None]

    def resized(self, image: Image.Image) -> Image.Image:
        """Return the image in the size of the network, before normalisation."""
        resized = image.resize(self._target_size(image.size), self.interpolation)
        return _center_crop(resized, self.crop)

    def _target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) after the resize."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        width, height = size
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


class ImageProcessor:
    """(H, W, 3) uint8 RGB or a PIL image to `pixel_values` (3 or 6, h, w) float32.

    Args:
        settings: Content of preprocessor_config.json. Its `tvf_*` entries are authoritative where
            present: published checkpoints hold means and deviations rounded to bfloat16 there.

    Raises:
        CheckpointError: A setting is missing or not supported.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if not isinstance(settings, Mapping):
            raise CheckpointError(
                f"{PROCESSOR_FILE} must hold a JSON object, not a {type(settings).__name__}."
            )
        self.settings = dict(settings)
        self.options = ImageOptions.from_dict(settings.get(OPTIONS_KEY))
        strategy = settings.get("image_resize_strategy", "letterbox")
        if strategy not in _STRATEGIES:
            raise CheckpointError(
                f"{PROCESSOR_FILE}: image_resize_strategy {strategy!r} is unknown; use one of "
                f"{', '.join(_STRATEGIES)}."
            )
        try:
            self.towers = _tower_transforms(settings, strategy)
            letterbox = settings.get("tvf_do_letterbox", strategy == "letterbox")
            self.letterbox_fill = _letterbox_fill(settings) if letterbox else None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{PROCESSOR_FILE} is incomplete or wrong ({type(error).__name__}: {error}). Copy "
                "the file from the checkpoint this one was made from."
            ) from error

    @classmethod
    def from_pretrained(cls, checkpoint_dir: Path) -> ImageProcessor:
        """Return the processor of a checkpoint folder.

        Raises:
            CheckpointError: preprocessor_config.json is absent or unusable.
        """
        path = checkpoint_dir / PROCESSOR_FILE
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(
                f"{checkpoint_dir} has no {PROCESSOR_FILE}; copy it from the base checkpoint."
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error

    def require_sizes(self, image_sizes: Sequence[int]) -> None:
        """Return when the images made here are as the towers take them, one side per tower.

        Raises:
            CheckpointError: Another number of towers or another size.
        """
        made = [tower.crop for tower in self.towers]
        wanted = [(size, size) for size in image_sizes]
        if made != wanted:
            raise CheckpointError(
                f"{PROCESSOR_FILE} makes images of {made} pixels, one per tower, but image_sizes "
                f"in config.json asks for {wanted}. Copy both files from one checkpoint."
            )

    def __call__(self, image: np.ndarray | Image.Image) -> torch.Tensor:
        """Return (3 or 6, h, w) float32; two towers stack on the channel axis.

        Raises:
            ImageError: Not an RGB image of 8 bits.
        """
        padded = self._padded(self.prepare(image))
        pixels = np.empty((3 * len(self.towers), *self.towers[0].crop), np.float32)
        for i, tower in enumerate(self.towers):
            if i == 0 or tower.geometry != self.towers[i - 1].geometry:
                resized = tower.resized(padded)
            tower.normalize(resized, pixels[3 * i : 3 * i + 3])
        return torch.from_numpy(pixels)

    def prepare(self, image: np.ndarray | Image.Image) -> Image.Image:
        """Return the RGB image after the checkpoint's camera path: what the model really sees."""
        rgb = to_rgb(image)
        if self.options != ImageOptions():
            rgb = Image.fromarray(self.options.apply(np.asarray(rgb)))
        return rgb

    def view(self, image: np.ndarray | Image.Image) -> np.ndarray:
        """Return what the first tower sees, (h, w, 3) uint8 RGB: its pixels before normalisation.

        Raises:
            ImageError: Not an RGB image of 8 bits.
        """
        return np.asarray(self.towers[0].resized(self._padded(self.prepare(image))))

    def _padded(self, image: Image.Image) -> Image.Image:
        fill = self.letterbox_fill
        return image if fill is None else _pad_to_square(image, fill)


@dataclass(frozen=True)
class ProcessedInput:
    """One observation as the model takes it.

    Attributes:
        input_ids: (1, T) int64, ending in the empty token.
        pixel_values: (1, 3 or 6, h, w) float32.
        prompt: The text behind `input_ids`.
    """

    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    prompt: str


class OpenVLAProcessor:
    """Image and instruction to model input.

    Args:
        image_processor: From the checkpoint.
        tokenizer: From the checkpoint.
        prompt_form: Name in `prompts.PROMPT_FORMS`.
    """

    def __init__(
        self, image_processor: ImageProcessor, tokenizer: PreTrainedTokenizerBase, prompt_form: str
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.prompt_form = prompt_form
        # The reference takes Llama's id for every family; only a smaller vocabulary has its own.
        own = tokenizer.get_vocab() if len(tokenizer) <= EMPTY_TOKEN_ID else {}
        self.empty_token_id = own.get(EMPTY_TOKEN, EMPTY_TOKEN_ID)

    @classmethod
    def from_pretrained(cls, checkpoint_dir: Path, prompt_form: str) -> OpenVLAProcessor:
        """Return the processor of a checkpoint folder.

        Raises:
            CheckpointError: The tokenizer or preprocessor files are absent or unusable.
        """
        image_processor = ImageProcessor.from_pretrained(checkpoint_dir)
        return cls(image_processor, load_tokenizer(checkpoint_dir), prompt_form)

    def __call__(self, image: np.ndarray | Image.Image, instruction: str) -> ProcessedInput:
        """Return the model input for one image and instruction.

        Raises:
            ImageError: Not an RGB image of 8 bits.
            InstructionError: Empty instruction.
        """
        prompt = build_prompt(instruction, self.prompt_form)
        pixel_values = self.image_processor(image)[None]
        return ProcessedInput(self.encode_prompt(prompt), pixel_values, prompt)

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Return (1, T) int64 ids of a prompt, ending in the empty token as training ids do."""
        encoded = self.tokenizer(prompt, return_tensors="pt")
        return append_empty_token(encoded.input_ids, self.empty_token_id)


def settings_of(config: OpenVLAConfig) -> dict[str, Any]:
    """Return the preprocessor_config.json of a configuration, with unrounded constants."""
    statistics = [
        next(value for part, value in _PIXEL_STATISTICS.items() if part in timm_id)
        for timm_id in config.timm_model_ids
    ]
    return {
        "image_resize_strategy": config.image_resize_strategy,
        "input_sizes": [[3, size, size] for size in config.image_sizes],
        "interpolations": ["bicubic"] * len(statistics),
        "means": [list(mean) for mean, _ in statistics],
        "stds": [list(std) for _, std in statistics],
        "use_fused_vision_backbone": config.use_fused_vision_backbone,
    }


def append_empty_token(input_ids: torch.Tensor, empty_id: int = EMPTY_TOKEN_ID) -> torch.Tensor:
    """Return (B, T) ids that end in the empty token, as training ids do: added where it is not."""
    if bool((input_ids[:, -1] == empty_id).all()):
        return input_ids
    return torch.cat([input_ids, input_ids.new_full((len(input_ids), 1), empty_id)], dim=1)


def load_tokenizer(checkpoint_dir: Path) -> PreTrainedTokenizerBase:
    """Return the fast tokenizer of a checkpoint folder; no code from the folder is run.

    Raises:
        CheckpointError: tokenizer.json is absent or unusable.
    """
    if not (checkpoint_dir / "tokenizer.json").exists():
        raise CheckpointError(
            f"{checkpoint_dir} has no tokenizer.json; copy the tokenizer files "
            "(tokenizer.json, tokenizer_config.json) from the base checkpoint."
        )
    try:
        # Not AutoTokenizer: it would follow auto_map in config.json to remote code.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_dir, local_files_only=True)
        tokenizer("")  # switches padding and truncation off: from now on any thread may call it
        return tokenizer
    except Exception as error:  # the library raises many types for a damaged file
        raise CheckpointError(
            f"The tokenizer in {checkpoint_dir} cannot be read: {error}"
        ) from error


def to_rgb(image: np.ndarray | Image.Image) -> Image.Image:
    """Return a PIL image in RGB mode.

    Args:
        image: (H, W, 3) uint8 RGB, or a PIL image of any mode.

    Raises:
        ImageError: Another shape or dtype, or an empty image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"The image is a {type(image).__name__}; give an (H, W, 3) uint8 RGB array or a PIL "
            "image."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ImageError(
            f"The image has shape {image.shape} and dtype {image.dtype}; it must be (H, W, 3) "
            "uint8 in RGB order."
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _tower_transforms(settings: Mapping[str, Any], strategy: str) -> list[TowerTransform]:
    sizes = settings["input_sizes"]
    towers = []
    for index, (_, height, width) in enumerate(sizes):
        resize = _stored(settings, "tvf_resize_params", index)
        crop = _stored(settings, "tvf_crop_params", index)
        normalize = _stored(settings, "tvf_normalize_params", index)
        default_size = (height, width) if strategy == "resize-naive" else min(height, width)
        towers.append(
            TowerTransform(
                resize=_size(resize.get("size", default_size)),
                interpolation=_interpolation(
                    resize["interpolation"] if resize else settings["interpolations"][index]
                ),
                crop=_crop_size(crop.get("output_size", (height, width))),
                mean=tuple(normalize["mean"] if normalize else settings["means"][index]),
                std=tuple(normalize["std"] if normalize else settings["stds"][index]),
            )
        )
    if not towers:
        raise ValueError("input_sizes is empty")
    return towers


def _stored(settings: Mapping[str, Any], name: str, index: int) -> Mapping[str, Any]:
    return entries[index] if (entries := settings.get(name)) else {}


def _size(size: int | Sequence[int]) -> tuple[int, int] | int:
    """Return (height, width), or the one number of the shorter side."""
    numbers = [size] if isinstance(size, int) else list(size)
    if len(numbers) not in (1, 2) or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError(f"a size must be one or two whole numbers above 0, not {size!r}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _crop_size(size: int | Sequence[int]) -> tuple[int, int]:
    sides = _size(size)
    return (sides, sides) if isinstance(sides, int) else sides


def _interpolation(value: int | str) -> int:
    return _INTERPOLATIONS[value] if isinstance(value, str) else int(value)


def _letterbox_fill(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the padding colour; the reference keeps one, that of the last tower, for all."""
    fill = settings.get("tvf_letterbox_fill")
    if fill is None:
        fill = [int(255 * value) for value in settings["means"][-1]]
    if len(fill) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in fill):
        raise ValueError(f"tvf_letterbox_fill must be three numbers from 0 to 255, not {fill!r}")
    return tuple(fill)


def _pad_to_square(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Return the image padded evenly on both sides; an odd difference stays one pixel short."""
    width, height = image.size
    side = max(width, height)
    horizontal, vertical = int((side - width) / 2), int((side - height) / 2)
    return ImageOps.expand(image, (horizontal, vertical, horizontal, vertical), fill)


def _center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the central (height, width); an image smaller than that is padded with black."""
    left, top = _crop_offset(image.width, size[1]), _crop_offset(image.height, size[0])
    return image.crop((left, top, left + size[1], top + size[0]))


def _crop_offset(length: int, crop: int) -> int:
    if crop > length:
        return -((crop - length) // 2)
    return round((length - crop) / 2)
