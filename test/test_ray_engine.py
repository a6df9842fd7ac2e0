"""The same records from processes that come and go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from replay_cases import (
    DeadlyPolicy,
    made_up_episodes,
    pixel_variant,
    require_equal_records,
    shared_checkpoint,
    with_images,
    without_report,
)
from test_replay import broken_at, metrics_of, sample_bag, sample_options

from openvla_ros.errors import (
    CheckpointError,
    ConfigurationError,
    DependencyError,
    OpenVLAError,
)
from openvla_ros.evaluation.replay.ray_engine import MOST_LOSSES, RayEngine
from openvla_ros.evaluation.replay.run import ReplayOptions, replay
from openvla_ros.evaluation.replay.variants import MadeVariant, Variant

LOCAL = ReplayOptions(bag=False, tell=lambda text: None)
RAY = replace(LOCAL, engine="ray", workers=2)
TESTS = Path(__file__).resolve().parent


def test_without_ray_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(DependencyError, match=r"pip install '\.\[ray\]'.*--engine local"):
        RayEngine()


def test_an_engine_that_has_nothing_to_do_starts_nothing() -> None:
    ray = pytest.importorskip("ray")
    RayEngine(4).close()
    assert not ray.is_initialized()


def test_an_address_that_is_none_is_an_error_that_says_what_one_looks_like() -> None:
    """It was a traceback of Ray's."""
    ray = pytest.importorskip("ray")
    engine = RayEngine(1, "my cluster")
    with pytest.raises(
        ConfigurationError, match=r"'my cluster' leads to no Ray cluster .*HOST:PORT"
    ):
        engine.describe(pixel_variant())
    engine.close()
    assert not ray.is_initialized()


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """Workers find the modules of these tests."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A running Ray of two CPUs, which engines use and leave running."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield
    assert ray.is_initialized()
    ray.shutdown()


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    without_report(monkeypatch)


def deadly(lives: Path, count: int, instruction: str) -> MadeVariant:
    """A variant whose policy kills its process `count` times at one instruction."""
    from functools import partial

    lives.mkdir()
    for life in range(count):
        (lives / str(life)).touch()
    return MadeVariant("base", make=partial(DeadlyPolicy, lives, instruction))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_in_a_ray_that_is_started_for_the_run(
    tmp_path: Path,
) -> None:
    """First of the slow tests here: none has started Ray yet."""
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    episodes = made_up_episodes(6)
    variant = deadly(tmp_path / "lives", MOST_LOSSES - 1, episodes[2].instruction)
    out = replay(episodes, [variant], tmp_path / "out", RAY)
    assert not ray.is_initialized()
    assert not list((tmp_path / "lives").iterdir())
    replay(episodes, [pixel_variant()], tmp_path / "local", LOCAL)
    assert require_equal_records(out, tmp_path / "local") == 6
    probes = [(folder / "probes" / "base.json").read_text() for folder in (out, tmp_path / "local")]
    assert probes[0] == probes[1]


@pytest.mark.slow
def test_ray_gives_the_records_of_the_local_engine_also_after_an_interruption(
    tmp_path: Path, cluster
) -> None:
    bag, options = sample_bag(), sample_options(bag=False, probes=False)
    base = Variant("base", shared_checkpoint(), device="cpu")
    variants = [base, replace(base, name="crop", center_crop=True)]
    names = ("base", "crop")
    local = replay([bag], variants, tmp_path / "local", options)
    many = replace(options, engine="ray", workers=2)
    spread = replay([bag], variants, tmp_path / "ray", many)
    assert require_equal_records(local, spread, names) == 6

    def stop(_variant: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    resumed = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        replay([bag], variants, resumed, replace(many, on_steps=stop))
    replay([bag], variants, resumed, many)
    assert require_equal_records(local, resumed, names) == 6
    figures = [metrics_of(out)["variants"]["crop"] for out in (local, spread)]
    for one in figures:
        del one["metrics"]["latency_ms"], one["policy"]["choices"]["start-up"]
        del one["policy"]["choices"]["drafts"]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_an_episode_that_kills_every_worker_is_named_and_the_others_stay(
    tmp_path: Path, cluster
) -> None:
    episodes = made_up_episodes(4)
    variant = deadly(tmp_path / "lives", MOST_LOSSES + 1, episodes[3].instruction)
    with pytest.raises(OpenVLAError, match=r"3 workers died .*made up, episode_000003"):
        replay(episodes, [variant], tmp_path / "out", replace(RAY, workers=1))
    records = tmp_path / "out" / "records" / "base"
    assert len(list(records.iterdir())) == 3
    assert not (tmp_path / "out" / "metrics.json").exists()
    for life in (tmp_path / "lives").iterdir():
        life.unlink()
    replay(episodes, [variant], tmp_path / "out", RAY)
    assert len(list(records.iterdir())) == 4


@pytest.mark.slow
def test_errors_of_workers_arrive_as_they_were_raised(tmp_path: Path, cluster) -> None:
    episodes = made_up_episodes(3)
    with pytest.raises(CheckpointError, match="nowhere"):
        replay(episodes, [Variant("base", str(tmp_path / "nowhere"))], tmp_path / "a", RAY)
    episodes[1] = with_images(episodes[1], broken_twice)
    with pytest.raises(ConfigurationError, match="message 7"):
        replay(episodes, [pixel_variant()], tmp_path / "b", RAY)
    out = replay(episodes, [pixel_variant()], tmp_path / "b", replace(RAY, skip_broken=True))
    assert metrics_of(out)["variants"]["base"]["episodes"] == 2
    episodes[1] = with_images(episodes[1], (yield_nothing for _ in range(1)).__next__)
    with pytest.raises(ConfigurationError, match="cannot be sent to another process"):
        replay(episodes, [pixel_variant()], tmp_path / "c", RAY)


@pytest.mark.slow
def test_more_workers_than_there_is_room_for_are_refused(tmp_path: Path, cluster) -> None:
    options = replace(RAY, workers=3)
    with pytest.raises(ConfigurationError, match="--workers 3 is more than the 2 CPU"):
        replay(made_up_episodes(1), [pixel_variant()], tmp_path / "out", options)


def broken_twice():
    """Two images, then an error: importable by workers."""
    return broken_at(2)()


def yield_nothing():
    """A function."""
