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
from PIL import Image

from openvla_ros.action_specs import load_action_spec, read_action_specs
from openvla_ros.engine.engine import Engine
from openvla_ros.engine.exactness import ActionDecoder, Exactness
from openvla_ros.engine.requirements import require_quantization
from openvla_ros.engine.self_test import contrary_frames, require_sound, smooth_frames
from openvla_ros.errors import ImageError
from openvla_ros.model.action_stats import (
    ActionStats,
    read_adapter_stats,
    read_norm_stats,
    resolve_unnorm_key,
    tuned_unnorm_key,
    unnormalize,
)
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.base_reference import CheckpointFolders, resolve_folders
from openvla_ros.model.checkpoint import read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import (
    PROCESSOR_FILE,
    ImageProcessor,
    OpenVLAProcessor,
    ProcessedInput,
    load_tokenizer,
)
from openvla_ros.model.prompts import prompt_form
from openvla_ros.model.tensor_files import Progress
from openvla_ros.policy_loading import NetworkRequest, load_network
from openvla_ros.types import (
    PRIMARY,
    ActionSpec,
    DecodingStatistics,
    Observation,
    PolicyInfo,
    Prediction,
)

_TEST_INSTRUCTION = "pick up the red block"
_CALIBRATION_FRAMES = 8


@dataclass(frozen=True)
class _Prepared:
    """What `OpenVLAPolicy.prepare` leaves for `predict`."""

    inputs: ProcessedInput
    preprocess_ms: float


class OpenVLAPolicy:
    """OpenVLA with the statistics, prompt and image path of its checkpoint.

    One thread predicts at a time; any thread may prepare and view.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        processor: OpenVLAProcessor,
        norm_stats: Mapping[str, ActionStats],
        info: PolicyInfo,
        decoder: ActionDecoder,
        action_specs: Mapping[str, ActionSpec] | None = None,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.processor = processor
        self.norm_stats = dict(norm_stats)
        self._action_specs = dict(action_specs or {})
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
        exactness: str = "self",
        drafts: bool = True,
        draft_tolerance: int = 1,
        progress: Progress | None = None,
    ) -> OpenVLAPolicy:
        """Return the policy of a checkpoint folder or hub id.

        Args:
            checkpoint: Folder in the Hugging Face layout, or hub id such as "openvla/openvla-7b".
                The result of a fine-tuning run too: an adapter finds its base by itself.
            device: "auto", "cpu", "cuda" or "cuda:N".
            dtype: "auto", "float32", "bfloat16" or "float16".
            quantization: "none"; the engine's "fp8", "int8", "int4"; or "nf4", "bnb_int8".
            adapter: PEFT LoRA folder or hub id to apply, with statistics, image path and the
                meaning of its actions if they lie beside it.
            adapter_mode: "merge", "attach"; "auto" merges where that rounds nothing away.
            unnorm_key: Statistics to use; None when there is one, when a fine-tune has added one,
                or when every call names it.
            revision: Hub commit.
            local_files_only: Never reach for the network.
            attn_implementation: Of the language model: "sdpa" or "eager".
            min_free_gpu_memory_gib: What must be free on a GPU; 0 = the weights and 1 GiB.
            image_options: Steps of the camera path to add to those the checkpoint tells of.
            engine: "auto" is the engine where it supports the model, "off" the model by itself.
            exactness: "self", "hf" or "approx": whose ids the answer has; see `engine.exactness`.
            drafts: Whether the action before is checked as a draft of the next: fewer passes.
            draft_tolerance: Bins by which an accepted id may be off, for "approx" alone.
            progress: Told bytes done, bytes in all and what is done, while weights are read.

        Raises:
            CheckpointError: Something is missing, damaged or does not fit; nothing was loaded.
            ActionStatsError: No statistics, or `unnorm_key` is not among them.
            GpuMemoryError: Less GPU memory is free; nothing was loaded.
            ConfigurationError, DeviceError, DependencyError: The request cannot be met here.
        """
        how = Exactness(exactness, drafts=drafts, draft_tolerance=draft_tolerance)
        how.require(quantization, engine)
        folders = resolve_folders(checkpoint, adapter, revision, local_files_only)
        config = read_config(folders.base)
        norm_stats, unnorm_key = _choose_statistics(folders, unnorm_key)
        processor, image_path = _load_processor(folders, config, image_options)
        request = NetworkRequest(
            device=device,
            dtype=dtype,
            quantization=quantization,
            adapter=folders.adapter,
            adapter_name=str(adapter or checkpoint if folders.adapter else ""),
            adapter_mode=folders.usable_mode(adapter_mode),
            attn_implementation=attn_implementation,
            min_free_gpu_memory_gib=min_free_gpu_memory_gib,
            engine=engine,
            keeps_modules=how.level == "hf",
            progress=progress,
        )
        require_quantization(quantization, config, device, engine, request.adapter_mode)
        network = load_network(folders.base, config, request)
        choices = network.choices | folders.choices | {"image path": image_path}
        info = PolicyInfo(str(checkpoint), revision or "", unnorm_key or "", quantization, choices)
        decoder = ActionDecoder(network.model, network.engine, how)
        policy = cls(network.model, processor, norm_stats, info, decoder, _read_specs(folders))
        policy.calibrate()
        return policy

    @property
    def engine(self) -> Engine | None:
        """What runs the network; None when the Hugging Face modules run by themselves."""
        return self.decoder.engine

    @property
    def info(self) -> PolicyInfo:
        """Which checkpoint this is, and why it runs as it does."""
        return replace(self._info, choices={**self._info.choices, **self.decoder.choices})

    @property
    def statistics(self) -> DecodingStatistics:
        """How actions were decoded since the policy was loaded."""
        return self.decoder.statistics

    @property
    def unnorm_key(self) -> str:
        """The statistics in use.

        Raises:
            ActionStatsError: Several are there and none was chosen.
        """
        return resolve_unnorm_key(self.norm_stats, self._info.unnorm_key or None)

    @property
    def action_spec(self) -> ActionSpec:
        """What the numbers of an action mean: as the checkpoint says, or as far as published."""
        return load_action_spec(self.unnorm_key, stored=self._action_specs)

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

        One without a stamp is a trial: decoded without a draft, the slow case, and not counted.

        Raises:
            ImageError: No primary image, or not (H, W, 3) uint8.
            InstructionError: Empty instruction.
            ActionStatsError: No statistics chosen.
        """
        key = self.unnorm_key
        if observation.prepared is None:
            observation = self.prepare(observation)
        assert isinstance(observation.prepared, _Prepared)
        return self._answer(observation.prepared, key, is_trial=observation.stamp_ns == 0)

    def begin_episode(self) -> None:
        """Decode the next action without the one before as its draft.

        A draft changes how many passes an action takes, and under exactness `approx` its ids.
        """
        self.decoder.forget()

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

    def _answer(self, prepared: _Prepared, key: str, *, is_trial: bool = False) -> Prediction:
        start = time.perf_counter()
        stats, inputs = self.norm_stats[key], prepared.inputs
        decode = self.decoder.generate_plainly if is_trial else self.decoder.generate
        tokens = decode(inputs.input_ids, inputs.pixel_values, stats.action_dim)
        normalized = self.action_tokenizer.decode(tokens.token_ids)[None]  # (K=1, n)
        invalid = np.flatnonzero(~self.action_tokenizer.is_action_token(tokens.token_ids))
        actions = unnormalize(normalized, stats)
        total_ms = prepared.preprocess_ms + 1e3 * (time.perf_counter() - start)
        return Prediction(
            actions=actions,
            normalized_actions=normalized,
            token_ids=tokens.token_ids,
            unnorm_key=key,
            prompt=inputs.prompt,
            token_probabilities=tokens.token_probabilities,
            invalid_dims=tuple(invalid.tolist()),
            timings={
                "preprocess_ms": prepared.preprocess_ms,
                **tokens.timings,
                "total_ms": total_ms,
            },
            passes=tokens.passes,
            drafts_accepted=tokens.drafts_accepted,
        )

    def self_test(self) -> None:
        """Return when the model demonstrably looks at its image and answers repeatably.

        Black, white and noise frames must give different logits, a repeated frame the same
        tokens, with every draft. A model that never receives its image gives plausible actions all
        the same: it must not reach a robot.

        Raises:
            SelfTestError: It does not; the text says how it failed.
        """
        stats = self._any_stats()
        inputs = {
            name: self.processor(frame, _TEST_INSTRUCTION)
            for name, frame in contrary_frames().items()
        }
        require_sound(self.decoder, inputs, stats.action_dim)

    def calibrate(self) -> None:
        """Measure, on made-up frames, the margins that this exactness rests on; see `info.choices`.

        `from_pretrained` has done so already.
        """
        inputs = [self.processor(f, _TEST_INSTRUCTION) for f in smooth_frames(_CALIBRATION_FRAMES)]
        pixels = [given.pixel_values for given in inputs]
        self.decoder.calibrate(inputs[0].input_ids, pixels, self._any_stats().action_dim)

    def _any_stats(self) -> ActionStats:
        return self.norm_stats[self._info.unnorm_key or next(iter(self.norm_stats))]


def _choose_statistics(
    folders: CheckpointFolders, unnorm_key: str | None
) -> tuple[dict[str, ActionStats], str | None]:
    """Return the statistics of all keys, and the key that is named or goes without saying."""
    norm_stats = read_norm_stats(folders.base)
    if folders.adapter:
        norm_stats |= read_adapter_stats(folders.adapter)
    unnorm_key = unnorm_key or tuned_unnorm_key(folders.adapter or folders.base)
    if unnorm_key or len(norm_stats) == 1:
        unnorm_key = resolve_unnorm_key(norm_stats, unnorm_key)
    return norm_stats, unnorm_key


def _read_specs(folders: CheckpointFolders) -> dict[str, ActionSpec]:
    """Return what the folders say about their actions; the adapter knows better than its base."""
    specs = read_action_specs(folders.base)
    return specs | read_action_specs(folders.adapter) if folders.adapter else specs


def _load_processor(
    folders: CheckpointFolders, config: OpenVLAConfig, image_options: ImageOptions | None
) -> tuple[OpenVLAProcessor, str]:
    """Return what turns image and instruction into tensors, and why it does so as it does."""
    own = folders.adapter is not None and (folders.adapter / PROCESSOR_FILE).exists()
    source = folders.adapter if folders.adapter is not None and own else folders.base
    images = ImageProcessor.from_pretrained(source)
    images.require_sizes(config.image_sizes)
    tokenizer = load_tokenizer(folders.base)
    processor = OpenVLAProcessor(images, tokenizer, prompt_form(config.llm_backbone_id))
    why = "as the adapter says" if own else "as the checkpoint says"
    if image_options is not None and image_options != ImageOptions():
        images.options |= image_options
        why += ", and as requested"
    return processor, f"{images.options}: {why}"
