"""`OpenVLAPolicy`: a checkpoint that answers an image and an instruction with an action.

What a user imports. It joins the rooms below it (checkpoint, processing, network, action tokens,
statistics) and adds nothing of its own but the self test.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openvla_ros.action_specs import load_action_spec
from openvla_ros.engine.engine import Engine
from openvla_ros.errors import ImageError, SelfTestError
from openvla_ros.model.action_stats import (
    ActionStats,
    read_adapter_stats,
    read_norm_stats,
    resolve_unnorm_key,
    unnormalize,
)
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.checkpoint import read_config, resolve_checkpoint
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.modeling import GeneratedTokens, OpenVLAForActionPrediction
from openvla_ros.model.processing import OpenVLAProcessor, ProcessedInput
from openvla_ros.model.prompts import prompt_form
from openvla_ros.policy_loading import NetworkRequest, load_network
from openvla_ros.types import PRIMARY, ActionSpec, Observation, PolicyInfo, Prediction

_TEST_INSTRUCTION = "pick up the red block"
_TEST_IMAGE_SIZE = 256
#: Logits of two images must differ by this share of their range, or the image has no influence.
_TEST_SENSITIVITY = 1e-4


@dataclass(frozen=True)
class _Prepared:
    """What `OpenVLAPolicy.prepare` leaves for `predict`."""

    inputs: ProcessedInput
    preprocess_ms: float


class OpenVLAPolicy:
    """OpenVLA with the statistics, prompt and image path of its checkpoint.

    Not thread-safe: one thread predicts at a time, and one prepares.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        processor: OpenVLAProcessor,
        norm_stats: Mapping[str, ActionStats],
        info: PolicyInfo,
        engine: Engine | None = None,
    ) -> None:
        self.model = model
        self.engine = engine
        self.processor = processor
        self.norm_stats = dict(norm_stats)
        self.action_tokenizer = ActionTokenizer(
            model.config.action_vocab_size, model.config.n_action_bins
        )
        self._info = info

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        adapter: str | Path | None = None,
        adapter_mode: str = "auto",
        unnorm_key: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        attn_implementation: str = "sdpa",
        min_free_gpu_memory_gib: float = 0.0,
        image_options: ImageOptions | None = None,
        engine: str = "auto",
    ) -> OpenVLAPolicy:
        """Return the policy of a checkpoint folder or hub id.

        Args:
            checkpoint: Folder in the Hugging Face layout, or hub id such as "openvla/openvla-7b".
            device: "auto", "cpu", "cuda" or "cuda:N".
            dtype: "auto", "float32", "bfloat16" or "float16".
            quantization: "none"; "fp8", "int8" or "int4" (the engine's); "nf4" or "bnb_int8" (both
                through bitsandbytes).
            adapter: PEFT LoRA folder or hub id to apply.
            adapter_mode: "merge" into the weights, "attach" beside them; "auto" merges unless the
                model is quantised.
            unnorm_key: Statistics to use; None when there is one, or when every call names it.
            revision: Hub commit.
            local_files_only: Never reach for the network.
            attn_implementation: Of the language model: "sdpa" or "eager".
            min_free_gpu_memory_gib: What must be free on a GPU; 0 = the weights and 1 GiB.
            image_options: Steps of the camera path to add to those stored with the checkpoint,
                for fine-tunes whose folder does not say how their images were made.
            engine: "auto" is the engine where it supports the model, "off" the model by itself.

        Raises:
            CheckpointError: Something is missing, damaged or does not fit; nothing was loaded.
            ActionStatsError: No statistics, or `unnorm_key` is not among them.
            GpuMemoryError: Less GPU memory is free; nothing was loaded.
            ConfigurationError, DeviceError, DependencyError: The request cannot be met here.
        """
        folder = resolve_checkpoint(checkpoint, revision, local_files_only)
        adapter_dir = resolve_checkpoint(adapter, None, local_files_only) if adapter else None
        config = read_config(folder)
        norm_stats = read_norm_stats(folder)
        if adapter_dir:
            norm_stats |= read_adapter_stats(adapter_dir)
        if unnorm_key or len(norm_stats) == 1:
            unnorm_key = resolve_unnorm_key(norm_stats, unnorm_key)
        processor = OpenVLAProcessor.from_pretrained(folder, prompt_form(config.llm_backbone_id))
        processor.image_processor.require_sizes(config.image_sizes)
        why_options = "as the checkpoint says"
        if image_options is not None and image_options != ImageOptions():
            processor.image_processor.options |= image_options
            why_options = "as the checkpoint says, and as requested"
        request = NetworkRequest(
            device=device,
            dtype=dtype,
            quantization=quantization,
            adapter=adapter_dir,
            adapter_name=str(adapter or ""),
            adapter_mode=adapter_mode,
            attn_implementation=attn_implementation,
            min_free_gpu_memory_gib=min_free_gpu_memory_gib,
            engine=engine,
        )
        network = load_network(folder, config, request)
        choices = {
            **network.choices,
            "image path": f"{processor.image_processor.options}: {why_options}",
        }
        info = PolicyInfo(str(checkpoint), revision or "", unnorm_key or "", quantization, choices)
        return cls(network.model, processor, norm_stats, info, network.engine)

    @property
    def info(self) -> PolicyInfo:
        """Which checkpoint this is, and why it runs as it does."""
        return self._info

    @property
    def unnorm_key(self) -> str:
        """The statistics in use.

        Raises:
            ActionStatsError: Several are there and none was chosen.
        """
        return resolve_unnorm_key(self.norm_stats, self._info.unnorm_key or None)

    @property
    def action_spec(self) -> ActionSpec:
        """What the numbers of an action mean, as far as it is published."""
        return load_action_spec(self.unnorm_key)

    def prepare(self, observation: Observation) -> Observation:
        """Return the observation with its primary image and instruction as tensors.

        Raises:
            ImageError: No primary image, or not (H, W, 3) uint8.
            InstructionError: Empty instruction.
        """
        if PRIMARY not in observation.images:
            raise ImageError(
                f"The observation has no {PRIMARY!r} image; it has {sorted(observation.images)}."
            )
        image = observation.images[PRIMARY]
        return replace(observation, prepared=self._prepare(image, observation.instruction))

    def predict(self, observation: Observation) -> Prediction:
        """Return the action for one observation, prepared or not; only its primary image is used.

        Raises:
            ImageError: No primary image, or not (H, W, 3) uint8.
            InstructionError: Empty instruction.
            ActionStatsError: No statistics chosen.
        """
        key = self.unnorm_key
        if observation.prepared is None:
            observation = self.prepare(observation)
        assert isinstance(observation.prepared, _Prepared)
        return self._answer(observation.prepared, key)

    def view(self, image: np.ndarray) -> np.ndarray:
        """Return the (H, W, 3) uint8 RGB image as the network gets it: (h, w, 3) uint8 RGB.

        After rotation, JPEG, crop and resize; before normalisation.

        Raises:
            ImageError: Not an RGB image of 8 bits.
        """
        return self.processor.image_processor.view(image)

    def predict_action(
        self,
        image: np.ndarray | Image.Image,
        instruction: str,
        *,
        unnorm_key: str | None = None,
    ) -> Prediction:
        """Return the action for one image and instruction.

        Args:
            image: (H, W, 3) uint8 RGB, or a PIL image.
            instruction: The task in plain language; it is lower-cased, nothing else.
            unnorm_key: Statistics for this call.

        Raises:
            ImageError: Not an RGB image of 8 bits.
            InstructionError: Empty instruction.
            ActionStatsError: `unnorm_key` unknown, or none chosen among several.

        Source: openvla @ c8f03f4, OpenVLAForActionPrediction.predict_action.
        """
        key = resolve_unnorm_key(self.norm_stats, unnorm_key or self._info.unnorm_key or None)
        return self._answer(self._prepare(image, instruction), key)

    def _prepare(self, image: np.ndarray | Image.Image, instruction: str) -> _Prepared:
        start = time.perf_counter()
        inputs = self.processor(image, instruction)
        if self.model.device.type == "cuda":  # from here the GPU copies by itself
            inputs = replace(inputs, pixel_values=inputs.pixel_values.pin_memory())
        return _Prepared(inputs, 1e3 * (time.perf_counter() - start))

    def _answer(self, prepared: _Prepared, key: str) -> Prediction:
        start = time.perf_counter()
        stats = self.norm_stats[key]
        tokens = self._generate(prepared.inputs, stats.action_dim)
        normalized = self.action_tokenizer.decode(tokens.token_ids)[None]  # (K=1, n)
        invalid = np.flatnonzero(~self.action_tokenizer.is_action_token(tokens.token_ids))
        actions = unnormalize(normalized, stats)
        total_ms = prepared.preprocess_ms + 1e3 * (time.perf_counter() - start)
        return Prediction(
            actions=actions,
            normalized_actions=normalized,
            token_ids=tokens.token_ids,
            unnorm_key=key,
            prompt=prepared.inputs.prompt,
            token_probabilities=tokens.token_probabilities,
            invalid_dims=tuple(invalid.tolist()),
            timings={
                "preprocess_ms": prepared.preprocess_ms,
                **tokens.timings,
                "total_ms": total_ms,
            },
            passes=tokens.passes,
        )

    def self_test(self) -> None:
        """Return when the model demonstrably looks at its image and answers repeatably.

        Black, white and noise frames must give different logits, a repeated frame the same
        tokens. A model that never receives its image passes neither, and gives plausible actions
        all the same: it must not reach a robot.

        Raises:
            SelfTestError: One of the two fails.
        """
        shape = (_TEST_IMAGE_SIZE, _TEST_IMAGE_SIZE, 3)
        frames = {
            "black": np.zeros(shape, np.uint8),
            "white": np.full(shape, 255, np.uint8),
            "noise": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        }
        logits = {name: self._first_logits(frame) for name, frame in frames.items()}
        for name, values in logits.items():
            if not bool(torch.isfinite(values).all()):
                raise SelfTestError(
                    f"A {name} frame gives logits that are not finite. The weights or the number "
                    "format are unusable; try dtype bfloat16 or float32."
                )
        for first, second in (("black", "white"), ("black", "noise"), ("white", "noise")):
            self._require_difference(first, second, logits[first], logits[second])
        repeated = [self._test_tokens(frames["noise"]) for _ in range(2)]
        if repeated[0] != repeated[1]:
            raise SelfTestError(
                f"The same frame gave {repeated[0]} and then {repeated[1]}: this device does not "
                "compute repeatably."
            )

    def _require_difference(
        self, first: str, second: str, a: torch.Tensor, b: torch.Tensor
    ) -> None:
        difference = float((a - b).abs().max())
        needed = _TEST_SENSITIVITY * float(a.max() - a.min())
        if difference <= needed:
            raise SelfTestError(
                f"The model does not look at its image: {first} and {second} frames give the same "
                f"logits (difference {difference:.2g}, needed {needed:.2g}). It must not drive a "
                "robot. Check the checkpoint and whatever changes pixel_values on the way in."
            )

    def _first_logits(self, image: np.ndarray) -> torch.Tensor:
        return self._generate(self.processor(image, _TEST_INSTRUCTION), 1).logits

    def _generate(self, inputs: ProcessedInput, action_dim: int) -> GeneratedTokens:
        network = self.model if self.engine is None else self.engine
        return network.generate_action_tokens(inputs.input_ids, inputs.pixel_values, action_dim)

    def _test_tokens(self, image: np.ndarray) -> list[int]:
        key = self._info.unnorm_key or next(iter(self.norm_stats))
        return self.predict_action(image, _TEST_INSTRUCTION, unnorm_key=key).token_ids
