"""Small made-up recordings to train on, and what is trained on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from recording_formats import npz_arrays, recording

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.checkpoint import read_config
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.model.prompts import prompt_form
from openvla_ros.training.config import DataConfig, SourceConfig
from openvla_ros.training.datasets import open_training_sets
from openvla_ros.training.loader import TrainingData

TASKS = ("pick up the cup", "Open the drawer", "put the spoon on the towel and wipe the table")


def write_recordings(folder: Path, lengths: tuple[int, ...] = (6, 4, 5), seed: int = 0) -> Path:
    """Fill a folder with npz episodes of these lengths, 5 Hz, each with one of the tasks."""
    folder.mkdir(parents=True)
    for number, length in enumerate(lengths):
        made = recording(seed + number, length, TASKS[number % len(TASKS)])
        # A step twice as fast as the last one, so that the quantiles are not those of one step.
        scaled = replace(made, actions=made.actions * np.linspace(1, 2, length)[:, None])
        arrays = npz_arrays(replace(scaled, actions=scaled.actions.astype(np.float32)))
        np.savez(folder / f"episode_{number:03d}.npz", **arrays, rate_hz=np.array(5.0))
    return folder


def data_config(cache: Path, *folders: Path, **settings: object) -> DataConfig:
    """A configuration of npz folders, each under its own name."""
    sources = tuple(SourceConfig(path=str(folder), name=folder.name) for folder in folders)
    given = {"held_out": 0.0, "workers": 0, "cache_folder": str(cache)} | settings
    return DataConfig(sources=sources, **given)  # type: ignore[arg-type]


def load_processor(checkpoint: Path) -> OpenVLAProcessor:
    """The processor of a checkpoint folder."""
    config = read_config(checkpoint)
    return OpenVLAProcessor.from_pretrained(checkpoint, prompt_form(config.llm_backbone_id))


def training_data(checkpoint: Path, data: DataConfig, seed: int = 7) -> TrainingData:
    """What a run with this configuration draws from."""
    sets = open_training_sets(data, seed)
    return TrainingData(sets, load_processor(checkpoint), data, seed, ActionTokenizer())
