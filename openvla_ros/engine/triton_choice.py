"""Which of several kernels for the same thing this GPU runs fastest: measured once per process.

The first of them is the one to beat, and the only one unless new kernels are asked for
(`triton_launch.tries_new_kernels`). Another takes its place only if it gives the same numbers up to
rounding, and clearly sooner: what is nearly as fast must not change the bits of an answer from one
start to the next. A kernel that does not run here, for want of shared memory say, is out.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Callable, Hashable, Mapping
from functools import partial

import torch

from openvla_ros.engine.triton_launch import tries_new_kernels

Run = Callable[[], torch.Tensor]

_CLEARLY = 0.9  # of the time of the one to beat
_LARGEST_ERROR = 0.02  # relative; 16-bit rounding leaves 0.006
_CALLS, _REPEATS = 8, 7  # calls in one recording, and times it is replayed

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_chosen: dict[Hashable, str] = {}
_reports: dict[str, str] = {}


def reports() -> dict[str, str]:
    """Return what was measured so far: by key, every candidate with its time or what it lacks."""
    return dict(_reports)


def choose(key: Hashable, runs: Mapping[str, Run], device: torch.device) -> str:
    """Return the name of the run to use from now on.

    Args:
        key: What is computed, of what shape, and where.
        runs: Candidates by name, the one to beat first. Each returns its result in new memory and
            may be called any number of times.
        device: Where they run. Nothing is measured unless new kernels are asked for, nor on a CPU,
            where Triton interprets kernels, nor while a graph is recorded: then it is the first.

    Raises:
        RuntimeError: None of them runs here.
    """
    with _lock:
        if key not in _chosen:
            if len(runs) > 1 and _can_measure(device):
                _chosen[key] = _measured(key, runs, device)
            else:
                _chosen[key] = next(iter(runs))
        return _chosen[key]


def _can_measure(device: torch.device) -> bool:
    if device.type != "cuda" or not tries_new_kernels():
        return False
    return not torch.cuda.is_current_stream_capturing()


def _measured(key: Hashable, runs: Mapping[str, Run], device: torch.device) -> str:
    notes: dict[str, str] = {}
    running = _running(runs, notes)
    if not running:
        raise RuntimeError(f"No kernel for {key} runs on this GPU: {notes}.")
    best = next(iter(running))
    try:
        spent = _spent(running, device)
    except RuntimeError as error:  # recording is at fault, not a kernel: each has just run
        notes["not measured"] = str(error)
    else:
        notes |= {name: f"{microseconds:.1f} us" for name, microseconds in spent.items()}
        best = _best(spent)
    _reports[str(key)] = f"{best} of " + ", ".join(
        f"{name}: {note}" for name, note in notes.items()
    )
    _log.info("%s: %s", key, _reports[str(key)])
    return best


def _running(runs: Mapping[str, Run], notes: dict[str, str]) -> dict[str, Run]:
    """Return the runs that work here and agree with the first of them; notes say why not others."""
    refusals = _refusals()
    running: dict[str, Run] = {}
    expected: torch.Tensor | None = None
    for name, run in runs.items():
        try:
            found = run().float()
        except refusals as error:
            notes[name] = f"does not run here ({type(error).__name__})"
            continue
        if expected is None:
            expected, running[name] = found, run
            continue
        off, size = float((found - expected).norm()), float(expected.norm())
        if off <= _LARGEST_ERROR * size:  # not so when either is NaN
            running[name] = run
        else:
            notes[name] = f"wrong: off by {off:.3g} of {size:.3g}"
    return running


def _spent(runs: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    """Return microseconds of each run."""
    evict = _evict(device)
    idle = _microseconds(evict, lambda: None)
    return {name: _microseconds(evict, run) - idle for name, run in runs.items()}


def _refusals() -> tuple[type[Exception], ...]:
    """Return what compiling and launching a kernel raises where it cannot run.

    Compiler passes raise RuntimeError. A CUDA error is one too, and shows again in the next call.
    """
    from triton.errors import TritonError

    return TritonError, RuntimeError


def _best(spent: Mapping[str, float]) -> str:
    """Return the first, or the fastest if that takes clearly less time."""
    first = next(iter(spent))
    fastest = min(spent, key=lambda name: spent[name])
    return fastest if spent[fastest] < _CLEARLY * spent[first] else first


def _evict(device: torch.device) -> Callable[[], object]:
    """Return what fills the second-level cache with other data: weights come from memory."""
    size = torch.cuda.get_device_properties(device).L2_cache_size
    other = torch.zeros(max(2 * size // 4, 1), dtype=torch.int32, device=device)
    return partial(torch.amax, other, 0)


def _microseconds(evict: Callable[[], object], run: Callable[[], object]) -> float:
    """Return the median time of one eviction and one run, recorded so that no host is in it."""
    evict()
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_CALLS):
            evict()
            run()
    spans = [_replay(graph) for _ in range(1 + _REPEATS)]
    return statistics.median(spans[1:]) / _CALLS


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    graph.replay()
    second.record()
    second.synchronize()
    return 1e3 * first.elapsed_time(second)
