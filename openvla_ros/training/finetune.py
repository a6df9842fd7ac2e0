"""Fine-tune a checkpoint on recordings: from a configuration to a folder that the node loads.

    from openvla_ros.training.finetune import finetune
    result = finetune(read_finetune_config("config/finetune.yaml"))
    policy = OpenVLAPolicy.from_pretrained(result.folder)

This file puts the parts of a run together and takes them apart again; `loop.py` trains.
"""

from __future__ import annotations

import fcntl
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from openvla_ros.errors import ConfigurationError, DependencyError, StorageError
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.base_reference import refer_to_base
from openvla_ros.model.checkpoint import read_config, resolve_checkpoint
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.model.prompts import prompt_form
from openvla_ros.model.result_files import BaseReference
from openvla_ros.training.action_meaning import describe_actions
from openvla_ros.training.activation_checkpointing import checkpoint_activations, compile_blocks
from openvla_ros.training.auxiliary import build_auxiliary_losses
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import plain_config
from openvla_ros.training.datasets import TrainingSet, open_training_sets, training_sources
from openvla_ros.training.distributed import (
    Ranks,
    barrier,
    broadcast_object,
    distribute,
    full_tensor,
    start_ranks,
    stop_ranks,
)
from openvla_ros.training.identity import identify, require_same
from openvla_ros.training.loader import SLICES, TrainingData, deployed_options
from openvla_ros.training.loop import Run, SilentWatcher, Standing, Watcher, train
from openvla_ros.training.lora import adapter_tensors
from openvla_ros.training.memory import estimate_memory, require_memory
from openvla_ros.training.moving_average import MovingAverage
from openvla_ros.training.objective import Objective
from openvla_ros.training.optimizer import build_optimizer, trained_parameters
from openvla_ros.training.plots import draw_plots
from openvla_ros.training.result import AdapterWeights, FullWeights, ResultFacts, write_result
from openvla_ros.training.run_log import RunLog
from openvla_ros.training.run_state import newest_state, read_state, remove_states, save_state
from openvla_ros.training.strategies import PreparedModel, prepare_model
from openvla_ros.training.trainee import Trainee

CHECKPOINTS_FOLDER = "checkpoints"
RESULT_FOLDER = "result"
SUMMARY_FILE = "metrics.json"
CONFIG_FILE = "config.json"
_LOCK_FILE = "run.lock"
_TERMINATED = 128 + signal.SIGTERM  # exit code


@dataclass(frozen=True)
class FinetuneResult:
    """What a run leaves.

    Attributes:
        folder: Adapter or checkpoint, for `OpenVLAPolicy.from_pretrained` and the node.
        metrics: What metrics.json holds: steps, the last evaluation, figures of the data.
        plots: Pictures; empty without matplotlib.
    """

    folder: Path
    metrics: dict[str, Any]
    plots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Parts:
    """What a run is made of, besides `Run`."""

    run: Run
    base: BaseReference
    base_folder: Path
    sets: Sequence[TrainingSet]
    prepared: PreparedModel


def finetune(
    config: FinetuneConfig, *, resume: bool = True, watcher: Watcher | None = None
) -> FinetuneResult:
    """Train, write the result into `<run.out>/result`, and return it.

    In several processes, started by torchrun, all call this alike. Ctrl-C and SIGTERM save a
    checkpoint first; the same call then goes on.

    Args:
        config: What to do.
        resume: Go on where the newest intact checkpoint in run.out is; False = start over, which
            removes the checkpoints that are there.
        watcher: Told how far it is; None = nobody.

    Raises:
        ConfigurationError: The configuration, or the run that is resumed, does not allow it.
        CheckpointError: The base, or every checkpoint of the run, is damaged.
        GpuMemoryError: The run does not fit; nothing was loaded.
        StorageError: The disk is full; the last checkpoint is intact.
        TrainingError: The loss is no number any more; the last checkpoint is intact.
        DependencyError: An optional library is missing.
        KeyboardInterrupt, SystemExit: A signal; a checkpoint was saved.
    """
    ranks = start_ranks(config.run.device)
    told = watcher if watcher and ranks.is_main else SilentWatcher()
    out = Path(config.run.out).expanduser()
    try:
        with ExitStack() as stack:
            if ranks.is_main:
                stack.enter_context(_locked(out))
            caught = stack.enter_context(_caught_signals())
            return _finetune(config, out, ranks, resume, told, caught)
    finally:
        stop_ranks()


def _finetune(
    config: FinetuneConfig,
    out: Path,
    ranks: Ranks,
    resume: bool,
    watcher: Watcher,
    caught: list[int],
) -> FinetuneResult:
    checkpoints = out / CHECKPOINTS_FOLDER
    if ranks.is_main and not resume:
        remove_states(checkpoints)
    parts = _make_parts(config, ranks, watcher)
    identity = identify(config, parts.base.fingerprint, parts.sets, ranks.world_size)
    standing = _restore(parts.run, checkpoints, identity, watcher)

    def save(now: Standing) -> None:
        facts = {"identity": identity, "standing": asdict(now)}
        tensors = parts.run.trainee.tensors()
        save_state(checkpoints, now.step, tensors, facts, keep=config.run.keep, write=ranks.is_main)

    with ExitStack() as stack:
        log = None
        if ranks.is_main:
            _write_json(out / CONFIG_FILE, plain_config(config))
            log = stack.enter_context(RunLog(out, config, standing.step))
        finished = train(parts.run, standing, log, save, watcher, lambda: bool(caught))
    if not finished:
        watcher.tell(f"Stopped after step {standing.step}, which is saved; the same call goes on.")
        if caught and caught[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)
    return _finish(parts, out, standing, watcher)


def _make_parts(config: FinetuneConfig, ranks: Ranks, watcher: Watcher) -> _Parts:
    seed = config.run.seed
    with _main_first(ranks):
        base_folder = resolve_checkpoint(config.base, config.revision or None)
        sets = open_training_sets(config.data, seed)
    model_config = read_config(base_folder)
    processor = OpenVLAProcessor.from_pretrained(
        base_folder, prompt_form(model_config.llm_backbone_id)
    )
    tokenizer = ActionTokenizer(model_config.action_vocab_size, model_config.n_action_bins)
    with _main_first(ranks):
        data = TrainingData(sets, processor, config.data, seed, tokenizer)
        data.prepare(lambda done, total: watcher.progress("pictures of episodes", done, total))
        slices = {name: data.slice(name, config.run.evaluation_samples) for name in SLICES}
    require_memory(estimate_memory(model_config, config, ranks.world_size), ranks.device)
    torch.manual_seed(seed)  # adapters and auxiliary losses are drawn from it
    prepared = prepare_model(
        base_folder,
        model_config,
        config.strategy,
        device=ranks.device,
        precision=config.run.precision,
    )
    objective = _make_objective(prepared, tokenizer, model_config, config)
    module = distribute(objective.to(ranks.device), config.strategy, ranks)
    parameters = trained_parameters(module)
    decay = config.optimization.ema_decay
    trainee = Trainee(
        parameters,
        build_optimizer(parameters, config),
        MovingAverage(parameters, decay) if decay else None,
    )
    run = Run(config, ranks, module, objective, trainee, data, slices, model_config.pad_token_id)
    base = refer_to_base(config.base, config.revision, base_folder)
    return _Parts(run, base, base_folder, sets, prepared)


def _make_objective(
    prepared: PreparedModel,
    tokenizer: ActionTokenizer,
    model_config: OpenVLAConfig,
    config: FinetuneConfig,
) -> Objective:
    checkpoint_activations(prepared.model, config.run.activation_checkpointing)
    if config.run.compile:
        compile_blocks(prepared.model)
    auxiliary = build_auxiliary_losses(config.optimization.auxiliary_losses, model_config)
    return Objective(prepared.model, tokenizer, auxiliary, config.run.precision).train()


def _restore(run: Run, checkpoints: Path, identity: dict[str, Any], watcher: Watcher) -> Standing:
    """Return how far the run is, with everything in it as it was then."""
    newest = newest_state(checkpoints, watcher.tell) if run.ranks.is_main else None
    folder = broadcast_object(newest.folder if newest else None, run.ranks)
    if folder is None:
        return Standing()
    state = newest or read_state(folder)
    require_same(state.facts["identity"], identity, str(checkpoints.parent))
    run.trainee.restore(state)
    watcher.tell(f"Resumed after step {state.step}.")
    standing = Standing(**state.facts["standing"])
    standing.judge(run.config)
    return standing


def _finish(parts: _Parts, out: Path, standing: Standing, watcher: Watcher) -> FinetuneResult:
    """Write what is deployed, the summary and the plots."""
    config, ranks = parts.run.config, parts.run.ranks
    metrics = {
        "step": standing.step,
        "reached_target": standing.reached_target,
        "evaluation": standing.evaluation,
        "data": {one.name: data_figures(one) for one in parts.sets},
    }
    sources = training_sources(config.data)
    facts = ResultFacts(
        norm_stats={one.name: one.entry for one in parts.sets},
        image_options=deployed_options(config.data),
        action_specs={
            one.name: describe_actions(source, one.episodes)
            for source, one in zip(sources, parts.sets, strict=True)
        },
        config=plain_config(config),
        metrics=metrics,
    )
    folder = out / RESULT_FOLDER
    with parts.run.trainee.deployed():
        try:
            write_result(
                folder,
                _deployed_weights(parts.prepared),
                facts,
                base=parts.base,
                base_folder=parts.base_folder,
                write=ranks.is_main,
            )
        except OSError as error:
            raise StorageError(
                f"The result cannot be written to {folder}: {error}. The run is saved; make room "
                "and start the same command again."
            ) from error
    barrier(ranks)
    plots: list[Path] = []
    if ranks.is_main:
        _write_json(out / SUMMARY_FILE, metrics)
        try:
            plots = draw_plots(out)
        except DependencyError as error:
            watcher.tell(str(error))
    return FinetuneResult(folder, metrics, tuple(plots))


def data_figures(one: TrainingSet) -> dict[str, Any]:
    """Return what is told about a source: episodes, steps, what was left out."""
    return {
        "episodes": len(one.episodes),
        "steps": one.steps,
        "held_out_episodes": len(one.held_out),
        "held_out_steps": sum(map(len, one.held_out)),
        "left_out": dict(one.dropped),
    }


def _deployed_weights(prepared: PreparedModel) -> AdapterWeights | FullWeights:
    if prepared.peft is not None:
        (config,) = prepared.peft.peft_config.values()
        return AdapterWeights(config.to_dict(), adapter_tensors(prepared.peft))
    trained = prepared.trained
    return FullWeights(tuple(trained), lambda name: full_tensor(trained[name]))


@contextmanager
def _main_first(ranks: Ranks) -> Iterator[None]:
    """Let the main process download and prepare what the others then find."""
    if not ranks.is_main:
        barrier(ranks)
    yield
    if ranks.is_main:
        barrier(ranks)


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; a second one does what it always does."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before: dict[signal.Signals, Any] = {}

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for kind in (signal.SIGINT, signal.SIGTERM):
        before[kind] = signal.signal(kind, catch)
    try:
        yield caught
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder.

    Raises:
        ConfigurationError: One is in it.
        StorageError: The folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / _LOCK_FILE).open("a")
    except OSError as error:
        raise StorageError(f"run.out: {out} cannot be written: {error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"run.out: another process is training in {out}; wait for it, or give another "
                "folder."
            ) from error
        yield


def _write_json(path: Path, content: Any) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.") from error
