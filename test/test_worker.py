"""The newest job wins, nothing queues, the next one is looked at in time, the end is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from openvla_ros.ros.worker import LEAD, InferenceWorker, Pace

PATIENCE_S = 10.0  # only ever waited for by a test that fails


class Desk:
    """Handles jobs one by one, each when the test says so."""

    def __init__(self) -> None:
        self.started: list[object] = []
        self._permits = threading.Semaphore(0)
        self._changed = threading.Condition()

    def handle(self, job: object) -> None:
        with self._changed:
            self.started.append(job)
            self._changed.notify_all()
        assert self._permits.acquire(timeout=PATIENCE_S)
        if isinstance(job, Exception):
            raise job

    def finish(self, jobs: int = 1) -> None:
        self._permits.release(jobs)

    def wait_started(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.started) >= count, PATIENCE_S)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def make(desk: Desk) -> Iterator[Callable[..., InferenceWorker]]:
    workers: list[InferenceWorker] = []

    def build(**options: object) -> InferenceWorker:
        workers.append(InferenceWorker(desk.handle, **options))
        return workers[-1]

    yield build
    desk.finish(1000)
    assert all(worker.close(PATIENCE_S) for worker in workers)


def test_the_newest_job_pushes_out_the_one_that_waits(desk: Desk, make: Callable) -> None:
    worker = make()
    assert worker.offer("a") is None
    desk.wait_started(1)
    assert worker.offer("b") is None
    assert worker.offer("c") == "b"
    assert worker.offer("d") == "c"
    desk.finish(2)
    assert worker.wait_until_idle(PATIENCE_S)
    assert desk.started == ["a", "d"]


def test_every_job_is_handled_or_handed_back(desk: Desk, make: Callable) -> None:
    worker = make()
    desk.finish(1000)
    pushed_out = [worker.offer(k) for k in range(500)]
    assert worker.wait_until_idle(PATIENCE_S)
    returned = [job for job in pushed_out if job is not None]
    assert sorted(desk.started + returned) == list(range(500))
    assert desk.started == sorted(desk.started)


def test_an_urgent_job_is_next_and_is_not_pushed_out(desk: Desk, make: Callable) -> None:
    worker = make()
    worker.offer("a")
    desk.wait_started(1)
    worker.offer("b")
    assert worker.offer_urgent("urgent")
    assert not worker.offer_urgent("too many")
    assert worker.offer("c") == "b"
    desk.finish(3)
    assert worker.wait_until_idle(PATIENCE_S)
    assert desk.started == ["a", "urgent", "c"]


def test_clear_hands_back_what_waits(desk: Desk, make: Callable) -> None:
    worker = make()
    worker.offer("a")
    desk.wait_started(1)
    worker.offer("b")
    worker.offer_urgent("urgent")
    assert worker.clear() == ["urgent", "b"]
    desk.finish()
    assert worker.wait_until_idle(PATIENCE_S)
    assert desk.started == ["a"]


def test_busy_since_is_the_beginning_of_the_job(desk: Desk, make: Callable) -> None:
    worker = make(clock=lambda: 42.0)
    assert worker.busy_since_s is None
    worker.offer("a")
    desk.wait_started(1)
    assert worker.busy_since_s == 42.0
    desk.finish()
    assert worker.wait_until_idle(PATIENCE_S)
    assert worker.busy_since_s is None


def test_the_interval_between_beginnings_is_kept(desk: Desk, make: Callable) -> None:
    """policy_rate limits the load on the GPU; the frame that is taken then is the newest."""
    now = [100.0]
    worker = make(min_interval_s=0.001, clock=lambda: now[0])
    desk.finish(10)
    worker.offer("a")
    assert worker.wait_until_idle(PATIENCE_S)
    worker.offer("b")  # the clock stands still: too early
    assert worker.offer("c") == "b"
    assert desk.started == ["a"]
    now[0] += 0.002
    assert worker.wait_until_idle(PATIENCE_S)
    assert desk.started == ["a", "c"]


def test_the_second_job_after_a_pause_does_not_begin_early(desk: Desk, make: Callable) -> None:
    """The first step of an instruction is executed whole: its answer is not replaced half-way."""
    now = [100.0]
    worker = make(min_interval_s=0.001, clock=lambda: now[0])
    desk.finish(10)
    worker.offer("a")
    assert worker.wait_until_idle(PATIENCE_S)
    now[0] += 0.0009
    worker.offer("b")
    assert not worker.wait_until_idle(0.1), "the clock stands still: it waits"
    now[0] += 0.0002
    assert worker.wait_until_idle(PATIENCE_S)
    assert desk.started == ["a", "b"]


# The pace: policy_rate 5.0 -----------------------------------------------------------------------


def beginnings(arrivals: list[float], answer_s: float = 0.05) -> np.ndarray:
    """When jobs begin, if there is always at most one that waits: the newest."""
    pace, begun, free_s = Pace(0.2), [], 0.0
    for k, arrival in enumerate(arrivals):
        start = max(arrival, free_s)
        start += max(pace.wait_s(start), 0.0)
        if k + 1 < len(arrivals) and start >= arrivals[k + 1]:
            continue  # pushed out
        pace.begin(start)
        begun.append(start)
        free_s = start + answer_s
    return np.array(begun)


@pytest.mark.parametrize("answer_s", [0.0, 0.05, 0.15, 0.19])
@pytest.mark.parametrize("camera_hz", [30.0, 29.97, 15.0, 10.0, 7.0, 5.5, 5.0])
@pytest.mark.parametrize("jitter_s", [0.0, 0.01])
def test_jobs_begin_at_the_rate_and_never_closer_than_nine_tenths(
    answer_s: float, camera_hz: float, jitter_s: float
) -> None:
    rng = np.random.default_rng(7)
    arrivals = np.arange(600) / camera_hz + rng.uniform(0.0, jitter_s, 600)
    begun = beginnings(list(arrivals), answer_s)
    assert np.diff(begun).min() >= 0.18 - 1e-9
    assert np.diff(begun)[0] >= 0.2 - 1e-9, "the first answer is not followed early"
    late = begun - begun[0] - 0.2 * np.arange(len(begun))
    assert late.min() >= -1e-9, "an upper bound, at every moment"
    assert (len(begun) - 1) / (begun[-1] - begun[0]) == pytest.approx(5.0, rel=0.02)


def test_one_late_frame_delays_no_later_one_for_long() -> None:
    """With a fixed interval a frame that was once 50 ms late made all later ones 50 ms late."""
    begun = beginnings([0.2 * k + (0.05 if k == 3 else 0.0) for k in range(50)])
    assert len(begun) == 50
    assert begun[6:] == pytest.approx(0.2 * np.arange(6, 50))
    assert np.diff(begun).min() == pytest.approx(0.18)


def test_after_a_pause_nothing_is_caught_up_on() -> None:
    pace = Pace(0.2)
    pace.begin(0.0)
    pace.begin(3.0)
    assert pace.wait_s(3.0) == pytest.approx(0.2)


def test_a_job_that_raises_is_reported_and_the_next_one_is_done(
    desk: Desk, make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    worker, error = make(), ValueError("broken")
    desk.finish(2)
    worker.offer(error)
    assert worker.wait_until_idle(PATIENCE_S)
    worker.offer("next")
    assert worker.wait_until_idle(PATIENCE_S)
    assert desk.started == [error, "next"]
    assert reported == [error]


def test_close_is_bounded_when_a_job_hangs(desk: Desk, make: Callable) -> None:
    worker = make()
    worker.offer("hangs")
    desk.wait_started(1)
    assert worker.close(0.01) is False
    assert worker.offer("late") == "late", "a closed worker hands every job back"
    assert not worker.offer_urgent("late")
    desk.finish()
    assert worker.close(PATIENCE_S) is True
    assert desk.started == ["hangs"]


def test_closing_leaks_no_thread(desk: Desk, make: Callable) -> None:
    before = threading.active_count()
    desk.finish(1000)
    for _ in range(20):
        worker = make()
        worker.offer("a")
        assert worker.close(PATIENCE_S)
    assert threading.active_count() == before


# Looking ahead ------------------------------------------------------------------------------------


class Study:
    """A worker that looks ahead, on a clock that stands still unless the test moves it.

    Attributes:
        now_s: Steady time. Spans are milliseconds: the worker really waits for them.
        desk: Where jobs are handled.
        glance: Where they are looked at.
        replaced: Jobs that were looked at and then replaced.
    """

    def __init__(self) -> None:
        self.now_s = 100.0
        self.desk, self.glance = Desk(), Desk()
        self.replaced: list[object] = []
        self.worker: InferenceWorker = InferenceWorker(
            self.desk.handle,
            look_ahead=self.glance.handle,
            on_replaced=self.replaced.append,
            clock=lambda: self.now_s,
        )

    def handle_one(self, job: object, took_s: float) -> None:
        """Let the worker handle a job, from its idle state to its idle state."""
        self.begin(job)
        self.now_s += took_s
        self.desk.finish()
        assert self.worker.wait_until_idle(PATIENCE_S)

    def begin(self, job: object) -> None:
        """Let the worker begin a job."""
        count = len(self.desk.started)
        self.worker.offer(job)
        self.desk.wait_started(count + 1)

    def look_at(self, job: object) -> None:
        """Offer a job while the worker is busy, and return when it is being looked at."""
        count = len(self.glance.started)
        self.worker.offer(job)
        self.glance.wait_started(count + 1)
        assert self.glance.started[-1] == job

    def finish_look(self) -> None:
        """Let the look end, and return when the worker knows."""
        self.glance.finish()
        with self.worker._changed:
            assert self.worker._changed.wait_for(lambda: not self.worker._is_looking, PATIENCE_S)


@pytest.fixture
def study() -> Iterator[Study]:
    study = Study()
    yield study
    for desk in (study.desk, study.glance):
        desk.finish(1000)
    assert study.worker.close(PATIENCE_S)


def test_the_next_job_is_looked_at_while_the_one_before_is_handled(study: Study) -> None:
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    assert study.desk.started == ["a", "b"], "b is still being handled"
    study.finish_look()
    study.desk.finish(2)
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b", "c"]
    assert study.glance.started == ["c"], "once is enough"


def test_nothing_is_looked_at_before_it_is_known_how_long_a_job_takes(study: Study) -> None:
    study.begin("a")
    study.worker.offer("b")
    study.now_s += 10.0
    study.desk.finish(2)
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b"]
    assert study.glance.started == []


def test_a_job_is_looked_at_as_late_as_it_can_be(study: Study) -> None:
    """A frame that waits gets old: at 30 Hz and 0.2 s an answer, five of six looks were wasted."""
    study.handle_one("a", took_s=0.02)
    study.begin("b")
    study.look_at("c")
    study.now_s += 0.004  # so long takes a look
    study.finish_look()
    study.now_s += 0.016
    study.desk.finish()
    study.desk.wait_started(3)  # c, and it is expected to take 0.02 s again
    study.now_s += 0.02 - LEAD * 0.004 - 0.001
    assert study.worker.offer("d") is None
    assert not study.worker.wait_until_idle(0.1), "the clock stands still"
    assert study.worker.offer("e") == "d", "d was not looked at"
    assert study.glance.started == ["c"]
    study.now_s += 0.001
    study.glance.wait_started(2)
    assert study.glance.started == ["c", "e"]


def test_the_interval_holds_for_looks_too(study: Study) -> None:
    """What is looked at before the pace lets it begin is old when it begins."""
    study.handle_one("a", took_s=0.001)
    study.now_s += 1.0
    study.worker.pace.interval_s = 0.05
    study.begin("b")
    study.worker.offer("c")
    study.now_s += 0.045
    assert not study.worker.wait_until_idle(0.1), "the clock stands still"
    assert study.glance.started == []
    study.now_s += 0.005
    study.glance.wait_started(1)


def test_a_job_that_is_being_looked_at_is_next_whatever_comes_meanwhile(study: Study) -> None:
    """Or a look that takes longer than the camera's period would never be used."""
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    assert study.worker.offer("d") is None
    study.desk.finish()
    study.desk.wait_started(3)
    assert study.desk.started[-1] == "c", "taken while the look goes on: `handle` waits for it"
    study.glance.finish(2)
    study.desk.finish(2)
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b", "c", "d"]


def test_a_newer_job_pushes_out_one_that_was_looked_at(study: Study) -> None:
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    study.finish_look()
    study.now_s += 0.02  # b takes longer than expected
    assert study.worker.offer("d") == "c"
    study.glance.wait_started(2)
    study.finish_look()
    study.desk.finish(2)
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b", "d"]


def test_what_came_during_a_look_replaces_it_when_the_worker_stays_busy(study: Study) -> None:
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    assert study.worker.offer("d") is None
    study.now_s += 0.02  # b takes longer than expected
    study.glance.finish()
    study.glance.wait_started(2)
    assert study.glance.started == ["c", "d"]
    assert study.replaced == ["c"]
    study.glance.finish()
    study.desk.finish(2)
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b", "d"]


def test_an_urgent_job_comes_before_one_that_was_looked_at(study: Study) -> None:
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    study.finish_look()
    assert study.worker.offer_urgent("urgent")
    study.desk.finish(3)
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b", "urgent", "c"]


def test_clear_hands_back_what_is_being_looked_at(study: Study) -> None:
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    study.worker.offer("d")
    assert study.worker.clear() == ["c", "d"]
    study.desk.finish()
    assert not study.worker.wait_until_idle(0.05), "the look goes on"
    study.finish_look()
    assert study.worker.wait_until_idle(PATIENCE_S)
    assert study.desk.started == ["a", "b"]


def test_close_is_bounded_when_a_look_hangs(study: Study) -> None:
    study.handle_one("a", took_s=0.01)
    study.begin("b")
    study.look_at("c")
    study.desk.finish()
    assert study.worker.close(0.05) is False
    study.glance.finish()
    assert study.worker.close(PATIENCE_S) is True


def test_with_a_look_ahead_too_every_job_is_handled_or_handed_back() -> None:
    handled: list[int] = []
    replaced: list[int] = []
    rng = np.random.default_rng(5)
    worker: InferenceWorker[int] = InferenceWorker(
        lambda job: (_spin(30), handled.append(job))[0],
        look_ahead=lambda job: _spin(10),
        on_replaced=replaced.append,
    )
    returned = []
    for job in range(3000):
        returned.append(worker.offer(job))
        _spin(int(rng.integers(0, 30)))
    assert worker.wait_until_idle(PATIENCE_S)
    assert worker.close(PATIENCE_S)
    returned = [job for job in returned if job is not None]
    assert sorted(handled + returned + replaced) == list(range(3000))
    assert handled == sorted(handled), "never an older one after a newer one"


def _spin(turns: int) -> None:
    """Give the other threads so many turns."""
    for _ in range(turns):
        threading.Event().wait(0)
