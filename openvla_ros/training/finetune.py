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
from safetensors import SafetensorError

from openvla_ros.errors import ConfigurationError, DependencyError, StorageError
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.base_reference import refer_to_base
from openvla_ros.model.checkpoint import read_config, resolve_checkpoint, stored_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.model.prompts import prompt_form
from openvla_ros.model.result_files import BaseReference
from openvla_ros.training.action_meaning import describe_sets, open_questions
from openvla_ros.training.activation_checkpointing import checkpoint_activations, compile_blocks
from openvla_ros.training.auxiliary import build_auxiliary_losses
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import plain_config
from openvla_ros.training.datasets import TrainingSet, open_training_sets
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
from openvla_ros.training.plan import data_figures
from openvla_ros.training.plots import draw_plots
from openvla_ros.training.result import AdapterWeights, FullWeights, ResultFacts, write_result
from openvla_ros.training.run_log import RunLog, require_log_libraries
from openvla_ros.training.run_state import (
    StoredState,
    newest_state,
    read_state,
    remove_states,
    save_state,
)
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
class _Inputs:
    """What a run starts from: known before anything large is loaded."""

    folder: Path
    base: BaseReference
    model_config: OpenVLAConfig
    sets: Sequence[TrainingSet]


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
    require_log_libraries(config)
    checkpoints = out / CHECKPOINTS_FOLDER
    inputs = _open_inputs(config, ranks)
    identity = identify(config, inputs.base.fingerprint, inputs.sets, ranks.world_size)
    state = _find_state(checkpoints, identity, ranks, watcher) if resume else None
    run, prepared = _build(config, inputs, ranks, watcher)
    standing = Standing()
    if state is not None:
        run.trainee.restore(state)
        standing = Standing(**state.facts["standing"])
        standing.judge(config)
        watcher.tell(f"Resumed after step {state.step}.")

    def save(now: Standing) -> None:
        facts = {"identity": identity, "standing": asdict(now)}
        tensors = run.trainee.tensors()
        save_state(checkpoints, now.step, tensors, facts, keep=config.run.keep, write=ranks.is_main)

    with ExitStack() as stack:
        log = None
        if ranks.is_main:
            if not resume:
                remove_states(checkpoints)
            _write_json(out / CONFIG_FILE, plain_config(config))
            log = stack.enter_context(RunLog(out, config, standing.step))
        finished = train(run, standing, log, save, watcher, lambda: bool(caught))
    if not finished:
        watcher.tell(f"Stopped after step {standing.step}, which is saved; the same call goes on.")
        if caught and caught[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)
    return _finish(run, inputs, prepared, out, standing, watcher)


def _open_inputs(config: FinetuneConfig, ranks: Ranks) -> _Inputs:
    with _main_first(ranks):
        folder = resolve_checkpoint(config.base, config.revision or None)
        sets = open_training_sets(config.data, config.run.seed)
    base = refer_to_base(config.base, config.revision, folder)
    return _Inputs(folder, base, read_config(folder), sets)


def _find_state(
    checkpoints: Path, identity: dict[str, Any], ranks: Ranks, watcher: Watcher
) -> StoredState | None:
    """Return the checkpoint to go on from; None = there is none."""
    newest = newest_state(checkpoints, watcher.tell) if ranks.is_main else None
    folder = broadcast_object(newest.folder if newest else None, ranks)
    if folder is None:
        return None
    state = newest or read_state(folder)
    require_same(state.facts["identity"], identity, str(checkpoints.parent))
    return state


def _build(
    config: FinetuneConfig, inputs: _Inputs, ranks: Ranks, watcher: Watcher
) -> tuple[Run, PreparedModel]:
    model_config, seed = inputs.model_config, config.run.seed
    require_memory(estimate_memory(model_config, config, ranks.world_size), ranks.device)
    processor = OpenVLAProcessor.from_pretrained(
        inputs.folder, prompt_form(model_config.llm_backbone_id)
    )
    tokenizer = ActionTokenizer(model_config.action_vocab_size, model_config.n_action_bins)
    with _main_first(ranks):
        data = TrainingData(inputs.sets, processor, config.data, seed, tokenizer)
        data.prepare(lambda done, total: watcher.progress("pictures of episodes", done, total))
        slices = {name: data.slice(name, config.run.evaluation_samples) for name in SLICES}
    torch.manual_seed(seed)  # adapters and auxiliary losses are drawn from it
    prepared = prepare_model(
        inputs.folder,
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
    return run, prepared


def _make_objective(
    prepared: PreparedModel,
    tokenizer: ActionTokenizer,
    model_config: OpenVLAConfig,
    config: FinetuneConfig,
) -> Objective:
    checkpoint_activations(prepared.model, config.run.activation_checkpointing)
    if config.run.compile:
        compile_blocks(prepared.model)
    optimization = config.optimization
    auxiliary = build_auxiliary_losses(optimization.auxiliary_losses, model_config)
    return Objective(
        prepared.model, tokenizer, auxiliary, config.run.precision, optimization.label_spread
    ).train()


def _finish(
    run: Run,
    inputs: _Inputs,
    prepared: PreparedModel,
    out: Path,
    standing: Standing,
    watcher: Watcher,
) -> FinetuneResult:
    """Write what is deployed, the summary and the plots."""
    config, ranks, sets = run.config, run.ranks, inputs.sets
    metrics = {
        "step": standing.step,
        "reached_target": standing.reached_target,
        "evaluation": standing.evaluation,
        "data": {one.name: data_figures(one) for one in sets},
    }
    specs = describe_sets(config.data, sets)
    facts = ResultFacts(
        norm_stats={one.name: one.entry for one in sets},
        image_options=deployed_options(config.data),
        action_specs=specs,
        config=plain_config(config),
        metrics=metrics,
    )
    folder = out / RESULT_FOLDER
    with run.trainee.deployed():
        try:
            write_result(
                folder,
                _deployed_weights(prepared, inputs.folder),
                facts,
                base=inputs.base,
                base_folder=inputs.folder,
                write=ranks.is_main,
            )
        except (OSError, SafetensorError) as error:
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
    for question in open_questions(specs):
        watcher.tell(question)
    return FinetuneResult(folder, metrics, tuple(plots))


def _deployed_weights(prepared: PreparedModel, base: Path) -> AdapterWeights | FullWeights:
    if prepared.peft is not None:
        (config,) = prepared.peft.peft_config.values()
        return AdapterWeights(config.to_dict(), adapter_tensors(prepared.peft))
    stored = stored_shapes(base)
    # A tied output head is the embeddings' parameter: files may hold it under both names, and only
    # as two tensors.
    named = prepared.model.named_parameters(remove_duplicate=False)
    trained = {name: p for name, p in named if p.requires_grad and name in stored}
    return FullWeights(tuple(trained), lambda name: full_tensor(trained[name]).clone())


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
        raise StorageError(
            f"run.out: {out} cannot be written: {error}. Give another folder."
        ) from error
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
