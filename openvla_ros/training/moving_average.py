"""A moving average of the trained weights: a calmer model than the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of parameters, in their number format and where they are.

    Args:
        parameters: From `trained_parameters`, after the objective was distributed: shards are
            averaged where they lie.
        decay: Share of the average that stays at each update, in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._averages = {name: p.detach().clone() for name, p in parameters.items()}

    @property
    def averages(self) -> dict[str, torch.Tensor]:
        """Name -> averaged weights, to be saved; `restore` takes them back."""
        return self._averages

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step into account."""
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].detach(), 1 - self._decay)

    @torch.no_grad()
    def restore(self, averages: Mapping[str, torch.Tensor]) -> None:
        """Continue from saved averages of the same names and shapes."""
        assert averages.keys() == self._averages.keys(), "averages of other parameters"
        for name, average in self._averages.items():
            average.copy_(averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the parameters are the averages; afterwards they are as before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._averages.items():
            parameter = self._parameters[name]
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
