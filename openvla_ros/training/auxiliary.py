"""Losses beside the action tokens: registered by name, trained along, never deployed.

A factory gets the model's configuration and returns a module whose `forward(hidden, batch)` gives a
scalar; `hidden` is (B, P + T, D), the last hidden states. Its weights are trained and saved with
the run, and no result folder holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.training.batch import TrainingBatch

AuxiliaryFactory = Callable[[OpenVLAConfig], nn.Module]

_FACTORIES: dict[str, AuxiliaryFactory] = {}


def register_auxiliary_loss(name: str, factory: AuxiliaryFactory) -> None:
    """Make a loss known under a name that a run's configuration may give a weight.

    Args:
        name: As in `optimization.auxiliary_losses`; one that is known already is replaced.
        factory: Makes its module for a model.

    Raises:
        ConfigurationError: The name cannot be that of a module.
    """
    if not name.isidentifier():
        raise ConfigurationError(
            f"{name!r} cannot be the name of an auxiliary loss: use letters, digits and "
            "underscores, such as 'next_state'."
        )
    _FACTORIES[name] = factory


def build_auxiliary_losses(
    weights: Mapping[str, float], config: OpenVLAConfig
) -> AuxiliaryLosses | None:
    """Return the losses of a run, or None when it has none.

    Args:
        weights: Name to weight, as in `optimization.auxiliary_losses`.
        config: Of the model that is trained.

    Raises:
        ConfigurationError: A name nobody registered.
    """
    unknown = sorted(set(weights) - set(_FACTORIES))
    if unknown:
        raise ConfigurationError(
            f"optimization.auxiliary_losses: {', '.join(unknown)} is not registered; known are "
            f"{', '.join(sorted(_FACTORIES)) or 'none'}. Call register_auxiliary_loss first."
        )
    if not weights:
        return None
    return AuxiliaryLosses({name: _FACTORIES[name](config) for name in weights}, weights)


class AuxiliaryLosses(nn.Module):
    """Name -> scalar of each auxiliary loss, unweighted.

    Args:
        losses: Name to module.
        weights: Name to the factor it enters the total with.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, hidden: torch.Tensor, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        """Return the losses of a batch whose last hidden states are (B, P + T, D)."""
        return {name: loss(hidden, batch) for name, loss in self.losses.items()}
