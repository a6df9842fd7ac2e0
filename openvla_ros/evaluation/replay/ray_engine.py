"""Episodes spread over the GPUs of a machine or cluster, with Ray; the records are the same.

Each worker process holds the policy and has one episode at a time; this process hands them out and
writes the records. A worker that dies is replaced, and its episode given out again. On a cluster
the sources must have the same paths everywhere; the output folder is this machine's alone.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError, DependencyError, OpenVLAError
from openvla_ros.evaluation.diagnosis.probes import ProbeResult
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.engines import Job
from openvla_ros.evaluation.replay.policy_description import PolicyDescription
from openvla_ros.evaluation.replay.policy_host import PolicyHost
from openvla_ros.evaluation.replay.variants import Variant

MOST_LOSSES = 3  # workers that one episode may cost
_OBJECT_STORE_BYTES = 256 * 2**20  # records are small: Ray would take a third of the memory
_LOOPBACK = "127.0.0.1"


class RayWorker(PolicyHost):
    """A policy in a process of its own.

    Args:
        threads: Of torch on a CPU; 0 leaves it alone. Sums of another number of threads may round
            otherwise, and Ray's own default is one.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        if threads:
            import torch

            torch.set_num_threads(threads)


class RayEngine:
    """Workers on GPUs, one each; without a GPU, processes on CPUs. Starts with its first task.

    Args:
        workers: How many; None = one per GPU, or one where there is none.
        address: Of a running Ray cluster; "" starts one on this machine, for this process alone.

    Raises:
        DependencyError: Ray is not installed.
    """

    def __init__(self, workers: int | None = None, address: str = "") -> None:
        self._ray = _import_ray()
        self._wanted = workers
        self._address = address
        self._workers: list[Any] = []
        self._started_ray = False
        self._new_worker: Callable[[], Any] = lambda: None

    def describe(self, variant: Variant) -> PolicyDescription:
        """Return the description of a variant's policy, which one worker loads for it.

        Raises:
            OpenVLAError: It cannot be loaded, or workers die of it.
        """
        return self._ask(lambda worker: worker.describe.remote(variant), variant, "loaded")

    def answer(
        self, variant: Variant, jobs: Sequence[Job], on_steps: Callable[[int], None]
    ) -> Iterator[tuple[Job, EpisodeRecord | OpenVLAError]]:
        """Yield the record of every job, or what is wrong with its episode, as they are done.

        Raises:
            OpenVLAError: The policy cannot be loaded, or an episode cost three workers.
        """
        self._start()
        waiting, losses = deque(jobs), Counter[str]()
        idle = list(range(len(self._workers)))
        running: dict[Any, tuple[int, Job]] = {}
        while waiting or running:
            while idle and waiting:
                place, job = idle.pop(0), waiting.popleft()
                running[_send(self._workers[place], variant, job)] = (place, job)
            (done, *_), _ = self._ray.wait(list(running))
            place, job = running.pop(done)
            idle.append(place)
            try:
                record = self._get(done)
            except self._losses:
                self._workers[place] = self._new_worker()
                losses[job.name] += 1
                if losses[job.name] >= MOST_LOSSES:
                    raise _lost(
                        variant, f"evaluated {job.episode.source}, {job.episode.name}"
                    ) from None
                waiting.appendleft(job)
                continue
            on_steps(len(job.episode))
            yield job, record

    def probe(self, variant: Variant, episodes: Sequence[Episode]) -> ProbeResult:
        """Return the answers of a variant's policy to pictures made wrong on purpose.

        Raises:
            OpenVLAError: It cannot be loaded, an episode cannot be read, or workers die of it.
        """
        return self._ask(
            lambda worker: worker.probe.remote(variant, list(episodes)), variant, "was probed"
        )

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        if self._started_ray:
            self._ray.shutdown()
            self._started_ray = False

    @property
    def _losses(self) -> tuple[type[Exception], ...]:
        """What says that a worker, or what it has sent, is lost."""
        exceptions = self._ray.exceptions
        return (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )

    def _ask(self, send: Callable[[Any], Any], variant: Variant, what: str) -> Any:
        """Return what the first worker answers; a new one is asked when it dies."""
        self._start()
        for _ in range(MOST_LOSSES):
            try:
                return self._get(send(self._workers[0]))
            except self._losses:
                self._workers[0] = self._new_worker()
        raise _lost(variant, what)

    def _get(self, reference: Any) -> Any:
        """Return a result, or raise what the worker has raised."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OpenVLAError):
                raise error.cause from None
            raise

    def _start(self) -> None:
        if self._workers:
            return
        if not self._ray.is_initialized():
            self._started_ray = True
            if self._address:
                self._connect()
            else:
                self._ray.init(
                    address="local",
                    num_cpus=self._wanted or (os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address=_LOOPBACK,
                )
        there = self._ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        count = self._wanted or gpus or 1
        room, what = (gpus, "GPU") if gpus else (cpus, "CPU")
        if count > room:
            raise ConfigurationError(
                f"--workers {count} is more than the {room} {what}s that Ray has, and each worker "
                "needs one. Give fewer, or a larger cluster."
            )
        remote = self._ray.remote(RayWorker)
        threads = _torch_threads()
        # Not a CPU besides a GPU: of a machine with fewer of them, workers would wait for ever.
        share = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        self._new_worker = lambda: remote.options(**share).remote(threads)
        self._workers = [self._new_worker() for _ in range(count)]

    def _connect(self) -> None:
        try:
            self._ray.init(address=self._address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"--ray-address {self._address!r} leads to no Ray cluster ({error}). Give the "
                "HOST:PORT that `ray start --head` printed, or leave it out to use this machine."
            ) from error


def _send(worker: Any, variant: Variant, job: Job) -> Any:
    try:
        return worker.answer.remote(variant, job.episode)
    except TypeError as error:
        raise ConfigurationError(
            f"{job.episode.source}, {job.episode.name} cannot be sent to another process, because "
            f"of how its images are opened: {error}. Use --engine local."
        ) from error


def _lost(variant: Variant, what: str) -> OpenVLAError:
    return OpenVLAError(
        f"{MOST_LOSSES} workers died while variant {variant.name!r} {what}. Look for the reason in "
        "Ray's logs and in the system's (out of memory, most often); with --engine local it shows "
        "itself. What is evaluated is kept: the same command goes on."
    )


def _torch_threads() -> int:
    """Return how many threads torch would use in this process; 0 without torch."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.get_num_threads()


def _import_ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A worker without a GPU of its own sees what this process sees.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise DependencyError(
            "--engine ray needs Ray: pip install '.[ray]' in the folder of openvla_ros. Without "
            "it, --engine local gives the same numbers."
        ) from error
    return ray
