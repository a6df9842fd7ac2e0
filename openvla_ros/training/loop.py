"""One step after another until the run is done: forward, backward, clip, move, log, judge, save.

This file knows the order of things; the parts are made in `finetune.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from openvla_ros.errors import TrainingError
from openvla_ros.training.batch import EvaluationSample, TrainingBatch
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.distributed import (
    Ranks,
    broadcast_object,
    clip_gradients,
    mean_over_ranks,
    without_sync,
)
from openvla_ros.training.free_running import evaluate_slice
from openvla_ros.training.loader import SLICES, TrainingData
from openvla_ros.training.objective import Objective
from openvla_ros.training.optimizer import learning_rate_at, set_learning_rate
from openvla_ros.training.run_log import RunLog
from openvla_ros.training.trainee import Trainee, seed_step

_NAMED_SAMPLES = 32  # in an error
_STOP = "stop"


class Watcher(Protocol):
    """Who is told how far a run is."""

    def tell(self, text: str) -> None:
        """A line that must be known."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Something before or after the training is so far."""

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Steps are done; the last figures, loss and samples_per_s among them."""


class SilentWatcher:
    """Shows nothing."""

    def tell(self, text: str) -> None:
        """Ignore it."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Ignore it."""

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
        config: What it shall do.
        ranks: Which of its processes this is.
        module: What gives the loss: `objective`, distributed.
        objective: What is evaluated.
        trainee: What a step changes.
        data: Where batches come from.
        slices: Name in `loader.SLICES` -> steps that are evaluated; [] = there are none.
        pad_token_id: Id after the end of shorter samples.
    """

    config: FinetuneConfig
    ranks: Ranks
    module: nn.Module
    objective: Objective
    trainee: Trainee
    data: TrainingData
    slices: Mapping[str, Sequence[EvaluationSample]]
    pad_token_id: int


@dataclass
class Standing:
    """How far a run is: JSON values, saved with every checkpoint.

    Attributes:
        step: Steps that are done.
        window: Figures of the steps since the last line of the log.
        evaluation: The last one: slice -> figures, and the "step" it was made after.
        reached_target: Whether the target accuracy was reached.
    """

    step: int = 0
    window: list[dict[str, float]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    reached_target: bool = False

    def judge(self, config: FinetuneConfig) -> None:
        """Say whether the last evaluation reaches the target of a configuration."""
        target, reached = config.run.target_accuracy, 0.0
        if self.evaluation:
            reached = self.evaluation[SLICES[0]]["free_running"]["accuracy"]
        self.reached_target = 0.0 < target <= reached

    def is_finished(self, config: FinetuneConfig) -> bool:
        """Whether nothing is left to train."""
        return self.reached_target or self.step >= config.optimization.max_steps


def train(
    run: Run,
    standing: Standing,
    log: RunLog | None,
    save: Callable[[Standing], None],
    watcher: Watcher,
    must_stop: Callable[[], bool],
) -> bool:
    """Train until the run is finished or must stop; return whether it is finished.

    Args:
        run: Its parts.
        standing: Where to go on; kept current.
        log: Of the main process; None elsewhere.
        save: Writes a checkpoint; called by all processes alike, and always at the end.
        watcher: Told after every step.
        must_stop: Whether this process was asked to stop.

    Raises:
        TrainingError: The loss is no number any more; the weights are those of the step before.
    """
    config, optimization = run.config, run.config.optimization
    if standing.is_finished(config):
        return True
    batches = run.data.batches(
        optimization.batch_size,
        optimization.accumulation,
        standing.step,
        optimization.max_steps,
        run.ranks.rank,
        run.ranks.world_size,
    )
    clock = _Clock(run)
    for batch in batches:
        clock.has_data()
        figures = train_step(run, standing.step, batch, stop=must_stop())
        interrupted = figures.pop(_STOP) > 0
        standing.step += 1
        standing.window.append(figures)
        shown = clock.has_stepped(standing.step, log)
        watcher.step(standing.step, optimization.max_steps, figures | shown)
        is_last = standing.step == optimization.max_steps
        if standing.step % config.run.log_every == 0 or is_last:
            _log_window(standing, log)
        if is_last or _is_due(standing.step, config.run.evaluate_every):
            standing.evaluation = {"step": standing.step, **evaluate(run)}
            standing.judge(config)
            if log:
                log.write("evaluation", standing.step, _evaluation_figures(standing.evaluation))
            clock.has_paused()
        done = standing.is_finished(config)
        if done or interrupted or _is_due(standing.step, config.run.save_every):
            save(standing)
            clock.has_paused()
        if done or interrupted:
            return done
    raise AssertionError("the data ended before the run")


def train_step(
    run: Run, step: int, batches: Sequence[TrainingBatch], stop: bool = False
) -> dict[str, float]:
    """Move the weights once; return the figures of the step, means over all its samples.

    Args:
        run: Its parts.
        step: Number of the step, from 0.
        batches: What this process computes, one after another.
        stop: Whether this process was asked to stop; above 0 in the figures when any was.

    Raises:
        TrainingError: The loss or the gradient is no number; the weights are untouched.
    """
    config, optimizer = run.config, run.trainee.optimizer
    seed_step(config.run.seed, step, run.ranks.rank)
    passes: list[dict[str, torch.Tensor]] = []
    for number, batch in enumerate(batches):
        with without_sync(run.module, skip=number + 1 < len(batches)):
            found = run.module(batch.to(run.ranks.device))
            (found["loss"] / len(batches)).backward()
        passes.append({name: value.detach() for name, value in found.items()})
    own = {name: torch.stack([p[name] for p in passes]).mean() for name in passes[0]}
    figures = mean_over_ranks({**own, _STOP: float(stop)}, run.ranks)
    norm = clip_gradients(run.trainee.parameters.values(), config.gradient_clip)
    if not (math.isfinite(figures["loss"]) and math.isfinite(norm)):
        losses = [float(p["loss"]) for p in passes]
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(_not_finite(step, figures["loss"], norm, losses, batches))
    rate = learning_rate_at(step, config)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if run.trainee.average is not None:
        run.trainee.average.update()
    return figures | {"gradient_norm": norm, "learning_rate": rate}


def evaluate(run: Run) -> dict[str, Any]:
    """Return slice -> figures of the weights that are deployed; all processes compute the same."""
    with run.trainee.deployed():
        found = {
            name: evaluate_slice(
                run.objective,
                samples,
                run.objective.tokenizer,
                run.pad_token_id,
                run.config.optimization.batch_size,
            ).to_dict()
            for name, samples in run.slices.items()
            if samples
        }
    return broadcast_object(found, run.ranks)


def mean_figures(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over some steps; of the learning rate the last."""
    means = {name: math.fsum(f[name] for f in window) / len(window) for name in window[0]}
    return means | {"learning_rate": window[-1]["learning_rate"]}


class _Clock:
    """Times of a run, kept apart from its figures."""

    def __init__(self, run: Run) -> None:
        optimization = run.config.optimization
        self._samples = optimization.batch_size * optimization.accumulation * run.ranks.world_size
        self._run = run
        self._start = self._last = time.perf_counter()
        self._waited_s = 0.0
        self._steps = 0
        self._shown: dict[str, float] = {}

    def has_data(self) -> None:
        self._waited_s += time.perf_counter() - self._last

    def has_stepped(self, step: int, log: RunLog | None) -> dict[str, float]:
        """Return the times of the last window; at its end, log them."""
        self._last = time.perf_counter()
        self._steps += 1
        if step % self._run.config.run.log_every == 0 or not self._shown:
            took_s = max(self._last - self._start, 1e-9)
            self._shown = {
                "samples_per_s": self._steps * self._samples / took_s,
                "step_s": took_s / self._steps,
                "waiting_for_data": self._waited_s / took_s,
            }
            if self._run.ranks.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(self._run.ranks.device)
                self._shown["peak_memory_gb"] = peak / 1e9
            if log:
                log.write_timing(step, self._shown)
            self.has_paused()
        return self._shown

    def has_paused(self) -> None:
        """Leave what happened since the last step out."""
        self._start = self._last = time.perf_counter()
        self._waited_s, self._steps = 0.0, 0


def _log_window(standing: Standing, log: RunLog | None) -> None:
    if log:
        log.write("train", standing.step, mean_figures(standing.window))
    standing.window = []


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluation_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figures for name, figures in evaluation.items() if name != "step"}


def _not_finite(
    step: int,
    loss: float,
    norm: float,
    losses: Sequence[float],
    batches: Sequence[TrainingBatch],
) -> str:
    """Return what to say about a step whose numbers have left the range of numbers."""
    if math.isfinite(loss):
        cause = f"the gradient of step {step + 1} has the norm {norm} while the loss is {loss:g}"
    else:
        cause = f"the loss of step {step + 1} is {loss}"
    bad = [b for b, own in zip(batches, losses, strict=True) if not math.isfinite(own)]
    origins = [origin for batch in bad or batches for origin in batch.origins]
    named = ", ".join(f"{o.dataset}/{o.episode} step {o.step}" for o in origins[:_NAMED_SAMPLES])
    more = len(origins) - _NAMED_SAMPLES
    named += f" and {more} more" if more > 0 else ""
    where = "It was computed from" if bad or math.isfinite(loss) else "This process computed"
    return (
        f"Training stopped: {cause}. {where} {named or 'samples of unknown origin'}. The last "
        "checkpoint is intact. Look at these steps (openvla-ros audit), and try a smaller "
        "optimization.learning_rate, warmup_steps or gradient_clip."
    )
