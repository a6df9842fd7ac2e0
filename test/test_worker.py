"""One thread, one slot: the newest job wins, nothing queues, and the end is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from openvla_ros.ros.worker import InferenceWorker, Pace

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
