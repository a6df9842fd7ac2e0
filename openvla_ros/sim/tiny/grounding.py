"""An auxiliary loss: where in the picture is the thing that the text names?

Small networks that are trained on actions alone go to the middle of all blocks and ignore the text.
Asked for the place of the named block as well, they learn to look for it. Nothing of this is
deployed: a policy still gets one picture and one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import IGNORE_INDEX
from openvla_ros.sim.recording.grounding import Grounding, read_grounding
from openvla_ros.training.auxiliary import register_auxiliary_loss
from openvla_ros.training.batch import TrainingBatch

#: Its name in `optimization.auxiliary_losses`.
LOSS = "grounding"
_NAMED_WEIGHT, _TOOL_WEIGHT, _GRASP_WEIGHT = 0.7, 0.3, 1.0
_NEAR_M = 0.03  # offsets well beyond it need not be told apart: a step is no longer
_NOTHING_WEIGHT = 0.1  # of patches that hold nothing: nearly all of them


def register_grounding(folders: Sequence[Path]) -> None:
    """Make the loss known to `finetune`, with the places that `openvla-ros sim record` noted.

    Args:
        folders: Of the recordings that are trained on.

    Raises:
        ConfigurationError: A folder has no places, or two have an episode of the same name.
    """
    places: dict[str, Grounding] = {}
    for folder in folders:
        found = read_grounding(folder)
        twice = sorted(set(places) & set(found))
        if twice:
            raise ConfigurationError(
                f"{folder} and another source both have an episode {twice[0]}, and the loss "
                f"{LOSS!r} could not tell them apart. Rename the bags of one of them."
            )
        places |= found
    register_auxiliary_loss(LOSS, lambda config: GroundingLoss(config, places))


class GroundingLoss(nn.Module):
    """Questions to the last hidden states, answered by one linear map each.

    At the last text token, whose next word is the first number of the action: which patch holds the
    block that is named, and which one the tool point? How far is it from one to the other, and how
    far open is the gripper? At each patch, before any text: does it hold a block, of which colour,
    or the tool point? The first two are answered with shares of the four nearest patches, which say
    where between their centres the thing is.

    Args:
        config: Of the model.
        places: Episode to its places in the picture.
    """

    kind_weights: torch.Tensor

    def __init__(self, config: OpenVLAConfig, places: Mapping[str, Grounding]) -> None:
        super().__init__()
        (size, *_), (tower, *_) = config.image_sizes, config.towers()
        self.grid = size // tower.patch_size
        self.colours = next(iter(places.values())).blocks.shape[1]
        width = int(config.text_config.hidden_size)
        self.named = nn.Linear(width, self.grid**2)
        self.tool = nn.Linear(width, self.grid**2)
        self.grasp = nn.Linear(width, 4)  # offset in x, y, z, and the opening, each -1 ... 1
        self.kind = nn.Linear(width, self.colours + 2)  # nothing, a colour each, tool
        self._places = places
        weights = torch.ones(self.colours + 2)
        weights[0] = _NOTHING_WEIGHT
        self.register_buffer("kind_weights", weights, persistent=False)

    def forward(self, hidden: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        """Return the weighted sum of the losses."""
        patches = hidden.shape[1] - batch.input_ids.shape[1]
        assert patches == self.grid**2, patches
        named, tool, blocks, offset, opening = self._labels(batch, hidden.device)
        first = (batch.labels != IGNORE_INDEX).int().argmax(dim=1)  # the first number of the action
        asked = hidden[torch.arange(len(hidden)), first - 1 + patches]
        loss = _NAMED_WEIGHT * _soft_loss(self.named(asked), patch_shares(named, self.grid))
        loss = loss + _TOOL_WEIGHT * _soft_loss(self.tool(asked), patch_shares(tool, self.grid))
        grasp = torch.cat([torch.tanh(offset / _NEAR_M), 2 * opening[:, None] - 1], dim=1)
        loss = loss + _GRASP_WEIGHT * F.smooth_l1_loss(self.grasp(asked).float(), grasp, beta=0.1)
        kinds = self.kind(hidden[:, 1 : 1 + patches]).float()
        labels = patch_kinds(blocks, tool, self.grid)
        return loss + F.cross_entropy(kinds.flatten(0, 1), labels.flatten(), self.kind_weights)

    def _labels(self, batch: TrainingBatch, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return what `Grounding` has at the step of each sample, in its order: (B, ...)."""
        rows = [(self._places[origin.episode], origin.step) for origin in batch.origins]

        def stacked(values: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.stack(values)).float().to(device)

        return tuple(
            stacked([getattr(places, field.name)[step] for places, step in rows])
            for field in fields(Grounding)
        )


def patch_shares(places: torch.Tensor, grid: int) -> torch.Tensor:
    """Return (B, grid * grid): how near each patch's centre is to (B, 2) places; rows sum to 1.

    The four patches around a place share it as in bilinear interpolation. Outside the picture the
    patches at its edge get it.
    """
    centre = (places * grid - 0.5).clamp(0, grid - 1)
    low = centre.floor().clamp(max=grid - 2)
    part = centre - low
    shares = places.new_zeros(len(places), grid * grid)
    for right in (0, 1):
        for down in (0, 1):
            share = (part[:, 0] if right else 1 - part[:, 0]) * (
                part[:, 1] if down else 1 - part[:, 1]
            )
            index = (low[:, 1] + down) * grid + low[:, 0] + right
            shares.scatter_add_(1, index.long()[:, None], share[:, None])
    return shares


def patch_kinds(blocks: torch.Tensor, tool: torch.Tensor, grid: int) -> torch.Tensor:
    """Return (B, grid * grid) int64: 0 nothing, 1 ... C the block of a colour, C + 1 the tool.

    Where the tool is in front of a block, the patch is that of the block.
    """
    count, colours, _ = blocks.shape
    kinds = torch.zeros(count, grid * grid, dtype=torch.int64, device=blocks.device)
    for kind, places in ((colours + 1, tool), *((c + 1, blocks[:, c]) for c in range(colours))):
        inside = ((places >= 0) & (places < 1)).all(dim=1)  # False where NaN
        cell = (places[inside] * grid).long()
        kinds[inside, cell[:, 1] * grid + cell[:, 0]] = kind
    return kinds


def _soft_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return -(shares * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
