"""Everything that a training step changes, by name: what a checkpoint of a run consists of.

Randomness is not among it: what a step draws depends on the seed, the step and the process alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from openvla_ros.errors import CheckpointError
from openvla_ros.training.moving_average import MovingAverage
from openvla_ros.training.run_state import StoredState

_WEIGHTS, _AVERAGE, _OPTIMIZER = "weights/", "average/", "optimizer/"
_STEP = "step"  # AdamW's own count: a scalar
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trainee:
    """The weights of a run and what moves them.

    Attributes:
        parameters: Name -> trained weights, auxiliary losses included.
        optimizer: Over all of them.
        average: Their moving average, or None.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    average: MovingAverage | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return name -> tensor, split over processes or not, in an order all of them share."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            found[_WEIGHTS + name] = parameter
            # A weight that never got a gradient has no moments.
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{_OPTIMIZER}{key}/{name}"] = value
        if self.average is not None:
            found |= {_AVERAGE + name: value for name, value in self.average.averages.items()}
        return found

    def restore(self, state: StoredState) -> None:
        """Become what was saved.

        Raises:
            CheckpointError: The checkpoint is of other weights, or a file of it is damaged.
        """
        restored: set[str] = set()

        def place_of(name: str, stored: torch.Tensor) -> torch.Tensor:
            place = self._place_of(name)
            if place is None or place.shape != stored.shape:
                raise CheckpointError(
                    f"{state.folder} holds {name} {tuple(stored.shape)}, which this run has not. "
                    "Start over with --no-resume (resume=False), or with another run.out."
                )
            restored.add(name)
            return place

        state.restore(place_of)
        missing = sorted(set(self.tensors()) - restored)
        if missing:
            raise CheckpointError(
                f"{state.folder} lacks {len(missing)} tensors of this run, {missing[0]} among them."
            )

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Within this context the weights are what is deployed: the average, if there is one."""
        if self.average is None:
            yield
            return
        with self.average.applied():
            yield

    def _place_of(self, name: str) -> torch.Tensor | None:
        if name.startswith(_WEIGHTS):
            return self.parameters.get(name.removeprefix(_WEIGHTS))
        if name.startswith(_AVERAGE):
            averages = {} if self.average is None else self.average.averages
            return averages.get(name.removeprefix(_AVERAGE))
        key, _, owner = name.removeprefix(_OPTIMIZER).partition("/")
        if owner not in self.parameters or key not in (_STEP, *_MOMENTS):
            return None
        return self._moments(self.parameters[owner])[key]

    def _moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Return AdamW's own record of a parameter, as its first step would make it."""
        record = self.optimizer.state[parameter]
        if not record:
            on_device = any(group["fused"] for group in self.optimizer.param_groups)
            device = parameter.device if on_device else torch.device("cpu")
            record[_STEP] = torch.zeros((), dtype=torch.float32, device=device)
            for key in _MOMENTS:
                record[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return record


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what torch draws in a step depend on these three numbers alone.

    So a resumed run draws what the uninterrupted one did, and an evaluation in between changes
    nothing.
    """
    (number,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(number >> np.uint64(1)))
