"""One training run in several processes: DDP for adapters, FSDP2 for everything else.

With one process every function does nothing, so the loop has one path. This file knows processes
and where weights lie; what is trained is `strategies`' business.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from openvla_ros.errors import ConfigurationError, DeviceError
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.runtime_choices import choose_device
from openvla_ros.model.vision import VisionTransformer
from openvla_ros.training.config import StrategyConfig
from openvla_ros.training.objective import FORWARD_METHODS, Objective

_LONGEST_WAIT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """Which of the processes of a run this one is.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: Number of processes.
        local_rank: Its number on this machine.
        device: Where it computes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def start_ranks(device: str = "auto") -> Ranks:
    """Return this process's place among those that torchrun started; alone without torchrun.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes each takes the GPU of its
            local rank.

    Raises:
        ConfigurationError: Not a device name, or one GPU for several processes.
        DeviceError: There is no such GPU, or fewer GPUs than processes.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen, _ = choose_device(device)
    if world_size == 1:
        return Ranks(0, 1, 0, chosen)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if chosen.type == "cuda":
        if device not in ("auto", "cuda"):
            raise ConfigurationError(
                f"run.device is {device!r}, and {world_size} processes were started; use cuda or "
                "auto, so that each process takes its own GPU."
            )
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise DeviceError(
                f"Process {local_rank} of this machine has no GPU: there are {count}. Start at "
                f"most {count} processes (torchrun --nproc-per-node {count})."
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        # The others wait while the main process downloads the base and prepares pictures; torchrun
        # ends them at once when it dies.
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    return Ranks(rank, world_size, local_rank, chosen)


def stop_ranks() -> None:
    """End the connection between the processes, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def distribute(objective: Objective, strategy: StrategyConfig, ranks: Ranks) -> nn.Module:
    """Return the module whose call gives the loss in every process; `objective` itself when alone.

    Adapters: every process holds all weights, and DDP averages the gradients of what is trained;
    the adapters of rank 0 hold. Everything else: FSDP2 splits weights, gradients and, because the
    optimiser is built afterwards, its moments; under bfloat16 it gathers weights and computes in
    bfloat16, and the split weights stay float32. Gradients are averaged in float32, so the step is
    that of the whole batch as long as all samples have equally many labels.

    Args:
        objective: Equal in all processes, but for new adapters.
        strategy: Decides between the two ways.
        ranks: Of `start_ranks`.
    """
    if ranks.world_size == 1:
        return objective
    if not strategy.is_adapter:
        _shard(objective, ranks)
        return objective
    for parameter in objective.parameters():
        if parameter.requires_grad:
            dist.broadcast(parameter.data, src=0)
    # Buffers are constants of the model.
    buffers = [name for name, _ in objective.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, buffers)
    return DistributedDataParallel(objective, init_sync=False, gradient_as_bucket_view=True)


def bare_objective(module: nn.Module) -> Objective:
    """Return the objective in what `distribute` returned."""
    bare = module.module if isinstance(module, DistributedDataParallel) else module
    assert isinstance(bare, Objective), type(bare)
    return bare


def _shard(objective: Objective, ranks: Ranks) -> None:
    """Split the weights over the processes, one unit of `_units` at a time."""
    # It warns of in-place operations on what a unit returns; the network has none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy()
    if objective.precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for unit in _uncomputed_units(objective.model):
        # Never gathered, and with a format for gradients FSDP2 looks for one while accumulating.
        fully_shard(unit, mesh=mesh)
    for together in _units(objective.model):
        fully_shard(together, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)
    for method in FORWARD_METHODS:
        register_fsdp_forward_method(objective, method)


def _uncomputed_units(model: OpenVLAForActionPrediction) -> Iterator[nn.Module]:
    """Yield the modules whose weights are stored and never computed with."""
    for tower in model.vision_backbone.children():
        assert isinstance(tower, VisionTransformer), type(tower)
        yield from (tower.get_submodule(name) for name in tower.uncomputed_modules())


def _units(model: OpenVLAForActionPrediction) -> Iterator[nn.Module | list[nn.Module]]:
    """Yield the modules that are gathered as a whole, inner ones first.

    Each has weights of one format, as FSDP2 needs; those that share a weight are one. Nothing is
    left for the root but what an auxiliary loss adds.
    """
    for tower in model.vision_backbone.children():
        assert isinstance(tower, VisionTransformer), type(tower)
        yield from tower.blocks[:-1]
        yield tower
    yield model.projector
    language = model.language_model.model
    yield from language.layers
    yield language.norm
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if ends[0].weight is ends[1].weight:
        yield ends
    else:
        yield from ends


@contextmanager
def without_sync(module: nn.Module, skip: bool = True) -> Iterator[None]:
    """Keep gradients in this process; wrap forward and backward of all but the last accumulation.

    Args:
        module: What `distribute` returned.
        skip: False does nothing, so that the loop needs no second path.
    """
    if skip and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    elif skip and isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)
    else:
        yield


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a split tensor; all processes must ask for it. Others are returned."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put_full(target: torch.Tensor, full: torch.Tensor) -> None:
    """Copy a whole tensor, equal in all processes, into one that may be split."""
    if isinstance(target, DTensor):
        placed = full.to(target.device, target.dtype)
        target.copy_(distribute_tensor(placed, target.device_mesh, target.placements))
    else:
        target.copy_(full)


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> float:
    """Return the norm of all gradients, after scaling them down to `max_norm` if they exceed it.

    Args:
        parameters: Of one optimiser, split or not; gradients may be None.
        max_norm: 0 = leave them.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    if not with_gradient:
        return 0.0
    gradients = [parameter.grad for parameter in with_gradient]
    norm = full_tensor(get_total_norm([g for g in gradients if g is not None]))
    if max_norm > 0.0:
        clip_grads_with_norm_(with_gradient, max_norm, norm)
    return float(norm)


def mean_over_ranks(numbers: Mapping[str, float | torch.Tensor], ranks: Ranks) -> dict[str, float]:
    """Return the mean of each number over the processes; all must give the same names."""
    if ranks.world_size == 1:
        return {name: float(number) for name, number in numbers.items()}
    names = sorted(numbers)
    values = torch.tensor([float(numbers[name]) for name in names], dtype=torch.float64)
    values = values.to(ranks.device)
    dist.all_reduce(values)
    means = dict(zip(names, (values / ranks.world_size).tolist(), strict=True))
    return {name: means[name] for name in numbers}


def broadcast_object(value: Any, ranks: Ranks) -> Any:
    """Return the value of rank 0 in every process."""
    if ranks.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=ranks.device)
    return box[0]


def barrier(ranks: Ranks) -> None:
    """Wait until all processes are here."""
    if ranks.world_size > 1:
        dist.barrier()
