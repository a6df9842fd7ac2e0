"""Replay: every frame of recorded episodes once through a policy, without a robot and without ROS.

    from openvla_ros.evaluation.replay.run import ReplayOptions, replay
    from openvla_ros.evaluation.replay.variants import Variant

    base = Variant("base", "openvla/openvla-7b", unnorm_key="bridge_orig")
    int4 = dataclasses.replace(base, name="int4", quantization="int4")
    replay(["my_bag"], [base, int4], Path("out"), ReplayOptions(topics=read_topic_file(path)))

The same command goes on where it was interrupted, and gives the same numbers. `replay_folder` tells
what is in the folder; `docs/replay_metrics.md` what the numbers mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.data.episode import Episode
from openvla_ros.data.topics import TopicConfig
from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.evaluation.diagnosis.probes import ProbeResult
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.engines import EvaluationEngine, Job, LocalEngine
from openvla_ros.evaluation.replay.folder import ReplayFolder
from openvla_ros.evaluation.replay.plan import plan_of, require_apart
from openvla_ros.evaluation.replay.policy_description import PolicyDescription
from openvla_ros.evaluation.replay.results import Problem, VariantResult, Wishes, write_results
from openvla_ros.evaluation.replay.variants import Progress, Variant, require_distinct

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class ReplayOptions:
    """How a replay runs.

    Attributes:
        topics: How bags are read.
        camera: Which camera of a data set; "" = the only one, or the "primary".
        transform: For RLDS: how its features become OpenVLA's seven numbers, by the name of its
            dataset in `data.oxe_transforms`; "" = the action as it is stored.
        rate_hz: Steps per second: of a bag in place of what `topics` says, of RLDS and npz where it
            is not stored; 0 = not given.
        max_episodes: Only the first so many of all sources; 0 = all.
        probes: Whether pictures made wrong on purpose are tried, too.
        bag: Whether a bag with recorded topics and answers is written.
        skip_broken: Leave out what cannot be read, and say so; else it ends the run.
        node: Parameters of the node: what the numbers of an action mean where nobody has published
            it (`action_spec.*`), and how the bag's twists are made.
        restart: Remove what an earlier run left in the folder.
        engine: "local" or "ray".
        workers: Processes of the Ray engine; 0 = one per GPU, or one.
        ray_address: Of a running Ray cluster; "" = one is started on this machine.
        command: How the evaluation was started, for the report.
        on_steps: Told the variant, steps done and steps to do in this run.
        on_loading: Told how far reading the weights is.
        tell: Gets what the user should know, a sentence at a time.
    """

    topics: TopicConfig = field(default_factory=TopicConfig)
    camera: str = ""
    transform: str = ""
    rate_hz: float = 0.0
    max_episodes: int = 0
    probes: bool = True
    bag: bool = True
    skip_broken: bool = False
    node: NodeConfig = field(default_factory=NodeConfig)
    restart: bool = False
    engine: str = "local"
    workers: int = 0
    ray_address: str = ""
    command: str = ""
    on_steps: Callable[[str, int, int], None] = lambda variant, done, total: None
    on_loading: Progress | None = None
    tell: Callable[[str], None] = logging.getLogger(__name__).warning

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigurationError(
                f"engine {self.engine!r} is unknown; use one of {', '.join(ENGINES)}."
            )

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide which records there are, as JSON types."""
        return {
            "topics": asdict(self.topics),
            "camera": self.camera,
            "transform": self.transform,
            "rate_hz": self.rate_hz,
            "max_episodes": self.max_episodes,
        }


def replay(
    sources: Sequence[str | Path | Episode],
    variants: Sequence[Variant],
    out: Path,
    options: ReplayOptions | None = None,
) -> Path:
    """Evaluate policies on recorded episodes; return `out`, filled.

    Args:
        sources: Bags, folders and files that `data.sources` reads, or episodes.
        variants: Policies, one in memory at a time; the others are compared with the first.
        out: Folder: a new one, or that of an interrupted run of the same evaluation.
        options: How it runs.

    Raises:
        ConfigurationError: A source, an option or the folder is not usable, or the disk is full.
            Records that are whole stay: the same call goes on after them.
        OpenVLAError: A policy cannot be loaded, or answers nothing.
    """
    options = options or ReplayOptions()
    given = [source if isinstance(source, Episode) else Path(source) for source in sources]
    if not given:
        raise ConfigurationError("There is nothing to replay; name at least one bag or folder.")
    require_distinct(variants)
    require_apart(given, out)
    _require_libraries(options)
    plan = plan_of(given, variants, options.deciding())
    with ReplayFolder(out, plan, restart=options.restart) as folder:
        jobs, problems = open_sources(given, options)
        run = _Run(folder, options, problems)
        engine = _engine_of(options)
        try:
            results = [run.evaluate(engine, variant, jobs) for variant in variants]
        finally:
            engine.close()
        run.finish(results)
    return out


def _require_libraries(options: ReplayOptions) -> None:
    """Return when the results can be written: hours later would be a bad time to learn it.

    Raises:
        DependencyError: A library is missing.
    """
    from openvla_ros.evaluation.report.svg import require_matplotlib

    require_matplotlib()
    if options.bag:
        from openvla_ros.data.bag_file import typestore_for

        typestore_for(())


def open_sources(
    sources: Sequence[Path | Episode], options: ReplayOptions
) -> tuple[list[Job], list[Problem]]:
    """Return the episodes of all sources, and what cannot be read; no image is read yet.

    Raises:
        ConfigurationError: A source is broken and must not be skipped, or none has an episode.
    """
    jobs: dict[str, Job] = {}
    problems: list[Problem] = []
    for index, name, episodes in _opened(sources, options):
        try:
            for episode in episodes():
                job = Job(f"{index:04d}_{episode.name}", episode)
                _require_new_name(job, jobs)
                jobs[job.name] = job
        except OpenVLAError as error:
            if not options.skip_broken:
                raise
            problems.append(Problem(name, "", str(error)))
        if 0 < options.max_episodes <= len(jobs):
            break
    if not jobs:
        why = f" {problems[0].error}" if problems else ""
        raise ConfigurationError(f"The sources have no episode to replay.{why}")
    chosen = list(jobs.values())
    return chosen[: options.max_episodes or len(chosen)], problems


def _opened(
    sources: Sequence[Path | Episode], options: ReplayOptions
) -> Iterator[tuple[int, str, Callable[[], Sequence[Episode]]]]:
    """Yield index and name of every source, and what opens it."""
    indices: dict[str, int] = {}
    for source in sources:
        name = source.source if isinstance(source, Episode) else str(source)
        if isinstance(source, Path) and name in indices:
            raise ConfigurationError(f"{name} is given twice; name every source once.")
        index = indices.setdefault(name, len(indices))
        yield index, name, partial(_episodes_of, source, options)


def _episodes_of(source: Path | Episode, options: ReplayOptions) -> Sequence[Episode]:
    if isinstance(source, Episode):
        return [source]
    from openvla_ros.data.sources import BAG, open_episodes, source_kind

    topics, rate_hz = options.topics, options.rate_hz or None
    if source_kind(source) == BAG and rate_hz is not None:
        topics, rate_hz = replace(topics, rate_hz=rate_hz), None
    return open_episodes(
        source,
        topics=topics,
        camera=options.camera,
        rate_hz=rate_hz,
        transform=options.transform,
    )


def _require_new_name(job: Job, jobs: dict[str, Job]) -> None:
    if job.name in jobs or "/" in job.name:
        raise ConfigurationError(
            f"{job.episode.source} has an episode called {job.episode.name!r}, which is taken or "
            "cannot name a file. Episodes of one source need different names without '/'."
        )


def _engine_of(options: ReplayOptions) -> EvaluationEngine:
    if options.engine == "local":
        return LocalEngine(options.on_loading)
    from openvla_ros.evaluation.replay.ray_engine import RayEngine

    return RayEngine(options.workers or None, options.ray_address)


class _Run:
    """One evaluation in progress."""

    def __init__(
        self, folder: ReplayFolder, options: ReplayOptions, problems: Sequence[Problem]
    ) -> None:
        self._folder = folder
        self._options = options
        self._problems = list(problems)
        self._broken: set[str] = set()  # names of jobs

    def evaluate(
        self, engine: EvaluationEngine, variant: Variant, jobs: Sequence[Job]
    ) -> VariantResult:
        """Answer what has no record yet; return where this variant stands."""
        wanted = [job for job in jobs if job.name not in self._broken]
        missing = [job for job in wanted if not self._is_done(variant, job)]
        policy = self._describe(engine, variant, is_needed=bool(missing))
        if policy.self_test:
            self._options.tell(f"{variant.name} fails its self test. {policy.self_test}")
        self._answer(engine, variant, missing)
        done = tuple(job for job in wanted if job.name not in self._broken)
        if not done:
            raise ConfigurationError(
                f"No episode could be evaluated. The first problem: {self._problems[0].error}"
            )
        return VariantResult(variant.name, policy, done, self._probe(engine, variant, done))

    def finish(self, results: Sequence[VariantResult]) -> None:
        """Write what is made of the records; an episode that one variant lacks is left out."""
        whole = [
            replace(r, jobs=tuple(job for job in r.jobs if job.name not in self._broken))
            for r in results
        ]
        for result in results:
            for name in self._broken:
                self._folder.remove_record(result.name, name)
        for problem in self._problems:
            self._options.tell(f"left out: {problem}")
        wishes = Wishes(self._options.command, self._options.bag, self._options.node)
        write_results(self._folder, whole, self._problems, wishes)

    def _describe(
        self, engine: EvaluationEngine, variant: Variant, *, is_needed: bool
    ) -> PolicyDescription:
        known = None if is_needed else self._folder.read_policy(variant.name)
        if known is not None:
            return known
        policy = engine.describe(variant)
        self._folder.write_policy(variant.name, policy)
        return policy

    def _answer(self, engine: EvaluationEngine, variant: Variant, missing: Sequence[Job]) -> None:
        total, done = sum(len(job.episode) for job in missing), 0

        def count(steps: int) -> None:
            nonlocal done
            done += steps
            self._options.on_steps(variant.name, done, total)

        count(0)
        for job, answer in engine.answer(variant, missing, count):
            if isinstance(answer, EpisodeRecord):
                self._folder.write_record(variant.name, job.name, answer)
                continue
            if not self._options.skip_broken:
                raise answer
            self._broken.add(job.name)
            self._problems.append(Problem(job.episode.source, job.episode.name, str(answer)))

    def _is_done(self, variant: Variant, job: Job) -> bool:
        record, why = self._folder.read_record(variant.name, job.name)
        if why:
            self._options.tell(why)
        return (
            record is not None
            and record.episode == job.episode.name
            and np.array_equal(record.stamps_ns, job.episode.stamps_ns)
        )

    def _probe(
        self, engine: EvaluationEngine, variant: Variant, jobs: Sequence[Job]
    ) -> ProbeResult | None:
        if not self._options.probes:
            return None
        stored = self._folder.read_probes(variant.name)
        if stored:
            try:
                return ProbeResult.from_dict(stored)
            except ConfigurationError as error:
                self._options.tell(f"probes of {variant.name}: {error}")
        probes = engine.probe(variant, [job.episode for job in jobs])
        self._folder.write_probes(variant.name, probes.to_dict())
        return probes
