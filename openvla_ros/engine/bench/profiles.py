"""Models with random weights for measuring, made where they run, and inputs for them.

Time and memory of these models mean something; their actions do not.
"""

from __future__ import annotations

import numpy as np
import torch

from openvla_ros.engine.bench.plan import check_profile
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import ImageProcessor, settings_of
from openvla_ros.model.random_weights import profile_config, random_tensor

ACTION_DIM = 7
#: BOS, 26 ids of an English prompt under Llama's tokenizer, and the empty token: 28 ids, which with
#: 256 patches are 284 positions.
PROMPT_IDS = [
    *(1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1925, 278, 1559, 5450, 297, 278),
    *(12580, 29880, 297, 278, 7254, 12580, 29973, 13, 3744, 29901, 29871, 29871),
]
_IMAGES = 32
#: Of the attention gain of `random_weights`. With all of it 32 random layers amplify the rounding
#: of bfloat16 until nothing agrees with float32, whoever computes.
_ATTENTION_SHARE = 0.25
#: Of the head of `random_weights`. The highest logits lie between 16 and 32 with it, as those of
#: trained checkpoints do, where neighbouring numbers of bfloat16 are 0.125 apart.
_HEAD_SCALE = 2.0
HEAD_NOTE = (
    f"Random weights: times and memory mean something, actions do not. The head is scaled by "
    f"{_HEAD_SCALE:g}, so that the highest logits lie between 16 and 32 and the margins below them "
    "at about one, like a trained model's; the scale does not change how many ids differ, because "
    "rounding grows with it."
)
_IMAGE_SHAPE = (480, 640, 3)

_SMALL_TEXT = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2752,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 32064,
    "pad_token_id": 32000,
}


def bench_config(profile: str) -> OpenVLAConfig:
    """Return the configuration of a profile: `small` is a language model behind tiny towers.

    Raises:
        ConfigurationError: Unknown profile.
    """
    check_profile(profile)
    if profile != "small":
        return profile_config(profile)
    tiny = profile_config("tiny")
    return OpenVLAConfig(
        timm_model_ids=tiny.timm_model_ids,
        vit_specs=tiny.vit_specs,
        text_config=_SMALL_TEXT,
        norm_stats=tiny.norm_stats,
    )


def random_model(
    config: OpenVLAConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> OpenVLAForActionPrediction:
    """Return a model in evaluation mode whose weights are drawn on its device, one at a time."""
    config.text_config.dtype = dtype  # or the language model takes the checkpoint's
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), _without_initialisation():
            model = OpenVLAForActionPrediction(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.requires_grad_(False)
            weight.copy_(random_tensor(key, tuple(weight.shape), config, seed, device))
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                weight *= _ATTENTION_SHARE
            if key.endswith("lm_head.weight"):
                weight *= _HEAD_SCALE
    return model.eval()


class _without_initialisation:  # noqa: N801 - used as a context manager, like torch.no_grad
    """Skips transformers' own drawing of weights, which takes minutes at full size on a CPU."""

    def __enter__(self) -> None:
        self._original = OpenVLAForActionPrediction.init_weights
        OpenVLAForActionPrediction.init_weights = lambda _: None

    def __exit__(self, *_: object) -> None:
        OpenVLAForActionPrediction.init_weights = self._original


def random_images(count: int = _IMAGES, seed: int = 0) -> list[np.ndarray]:
    """Return (480, 640, 3) uint8 images of smooth random content, as cameras give, not noise."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (1, 3, 12, 16)).astype(np.float32)
        smooth = torch.nn.functional.interpolate(
            torch.from_numpy(coarse), size=_IMAGE_SHAPE[:2], mode="bicubic", align_corners=False
        )
        images.append(smooth[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy())
    return images


def prepare_inputs(
    config: OpenVLAConfig, images: list[np.ndarray]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return prompt ids (1, T) and pixel values (1, 6, H, W) of every image, on the host."""
    processor = ImageProcessor(settings_of(config))
    return torch.tensor([PROMPT_IDS]), [processor(image)[None] for image in images]
