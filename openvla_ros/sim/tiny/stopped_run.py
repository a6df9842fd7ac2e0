"""A checkpoint of a run that was stopped before its end, to start the next lesson from."""

from __future__ import annotations

from pathlib import Path

import torch

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.checkpoint import load_model, read_config
from openvla_ros.model.derived_checkpoint import copy_settings, write_image_path
from openvla_ros.model.shards import new_folder, write_shards
from openvla_ros.training.finetune import CHECKPOINTS_FOLDER
from openvla_ros.training.run_state import newest_state

_WEIGHTS, _OTHERS = "weights/model.", ("weights/auxiliary.", "optimizer/", "average/")


def checkpoint_of_run(run: Path, base: Path, out: Path) -> Path:
    """Return `out`, filled with `base` and the newest weights of a run of the strategy "full".

    Args:
        run: `run.out` of the run.
        base: The checkpoint folder that it started from.
        out: Folder to create; its statistics are those of `base`.

    Raises:
        ConfigurationError: The run has saved nothing, or trained something else than `base`.
        CheckpointError: Files are damaged.
    """
    state = newest_state(run / CHECKPOINTS_FOLDER)
    if state is None:
        raise ConfigurationError(f"{run} holds no checkpoint of a run; finetune saves them there.")
    model = load_model(base, read_config(base), device=torch.device("cpu"), dtype=torch.float32)
    weights = model.state_dict()

    def place_of(name: str, stored: torch.Tensor) -> torch.Tensor:
        if name.startswith(_OTHERS):
            return torch.empty_like(stored)
        place = weights.get(name.removeprefix(_WEIGHTS))
        if place is None or place.shape != stored.shape:
            raise ConfigurationError(f"{run} trained {name}, which {base} does not have.")
        return place

    state.restore(place_of)
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    with new_folder(out) as folder:
        copy_settings(base, folder, {}, torch.float32)
        write_image_path(base, folder)
        write_shards(folder, shapes, weights.__getitem__, torch.float32)
    return out
