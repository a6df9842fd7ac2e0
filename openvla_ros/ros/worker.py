"""One thread that owns the policy, and a mailbox with room for one job: the newest wins.

A second thread may look ahead: do early what the next job needs besides the policy.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")

SHORTEST_INTERVAL = 0.9  # of the interval: two jobs never begin closer together
LONGEST_DELAY = 0.5  # of the interval: a job that begins later than that begins a new row
LEAD = 1.5  # times the last look ahead: how long before the policy is free the next one begins


class Pace:
    """Says when the next job may begin: never more jobs than one per interval, on average.

    Jobs are due in a row, one interval apart. One that begins late does not move the row, so a
    camera of nearly the same period as the policy's keeps its rate after a late frame; none begins
    before it is due. After a pause the row begins anew, and nothing is caught up on.

    Attributes:
        interval_s: Time between two jobs that are due.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._due_s = self._last_s = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Return how long the next job has to wait; zero or less = it may begin."""
        earliest_s = self._last_s + SHORTEST_INTERVAL * self.interval_s
        return max(self._due_s, earliest_s) - now_s

    def begin(self, now_s: float) -> None:
        """Book that a job begins now, whether it may or not."""
        if now_s - self._due_s > LONGEST_DELAY * self.interval_s:
            self._due_s = now_s
        self._due_s += self.interval_s
        self._last_s = now_s


class InferenceWorker(Generic[Job]):
    """Runs `handle(job)` for one job after the other, in a thread of its own.

    Jobs do not queue: a job that waits is replaced by a newer one. An urgent job is done first, and
    is not replaced.

    With `look_ahead`, the job that waits is looked at shortly before `handle` is expected to be
    free, judging by its last run: as late as that, because a frame that waits gets old, and what
    comes between makes it useless. A job that is being looked at is the next one, whatever comes
    meanwhile: otherwise a camera faster than the look would keep every look from being used. Once
    finished it waits as any other, and a newer one replaces it. When `handle` is free already,
    nothing is looked ahead at.

    Attributes:
        pace: How much time lies between the beginnings of two jobs; urgent ones do not wait for it.
    """

    def __init__(
        self,
        handle: Callable[[Job], None],
        *,
        look_ahead: Callable[[Job], None] | None = None,
        on_replaced: Callable[[Job], None] = lambda job: None,
        min_interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        name: str = "inference",
    ) -> None:
        """Start the threads.

        Args:
            handle: Must not raise: what it raises ends up in `threading.excepthook`, and the worker
                goes on with the next job.
            look_ahead: Prepares a job for `handle`, which may already have it when this is still
                running, and gets jobs that were never looked at. Must not raise either.
            on_replaced: Told of a job that a newer one replaced after it was looked at; any other
                is returned by `offer`.
            min_interval_s: See `Pace`.
            clock: Steady time in seconds.
            name: Of the thread, for who reads stacks.
        """
        self.pace = Pace(min_interval_s)
        self._handle = handle
        self._look_ahead = look_ahead
        self._on_replaced = on_replaced
        self._clock = clock
        self._changed = threading.Condition()
        self._urgent: Job | None = None
        self._waiting: Job | None = None
        self._ahead: Job | None = None  # older than `_waiting`: being looked at, or finished
        self._is_looking = False
        self._busy_since_s: float | None = None
        self._handle_s: float | None = None  # how long the last run took
        self._look_s: float | None = None
        self._is_closed = False
        # Daemons, because a policy that hangs in a driver call must not keep the process alive.
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True)]
        if look_ahead is not None:
            ahead = threading.Thread(target=self._run_ahead, name=f"{name} ahead", daemon=True)
            self._threads.append(ahead)
        for thread in self._threads:
            thread.start()

    @property
    def is_closed(self) -> bool:
        """True once `close` was called."""
        return self._is_closed

    @property
    def busy_since_s(self) -> float | None:
        """Steady time at which the current job began; None when there is none."""
        return self._busy_since_s

    def offer(self, job: Job) -> Job | None:
        """Put a job into the mailbox; return the job that it pushed out, if any."""
        with self._changed:
            if self._is_closed:
                return job
            pushed_out, self._waiting = self._waiting, job
            if pushed_out is None and not self._is_looking:
                pushed_out, self._ahead = self._ahead, None
            self._changed.notify_all()
            return pushed_out

    def offer_urgent(self, job: Job) -> bool:
        """Let a job be done next; return False when another urgent one waits already."""
        with self._changed:
            if self._is_closed or self._urgent is not None:
                return False
            self._urgent = job
            self._changed.notify_all()
            return True

    def clear(self) -> list[Job]:
        """Take every waiting job out of the mailbox and return them."""
        with self._changed:
            jobs = (self._urgent, self._ahead, self._waiting)
            self._urgent = self._ahead = self._waiting = None
            return [job for job in jobs if job is not None]

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Return True when no job waits or runs; False when that lasts longer."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Drop what waits and end the threads; return False when a job does not end in time."""
        with self._changed:
            self._is_closed = True
            self._urgent = self._ahead = self._waiting = None
            self._changed.notify_all()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline_s - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _is_idle(self) -> bool:
        jobs = (self._urgent, self._ahead, self._waiting)
        is_busy = self._is_looking or self._busy_since_s is not None
        return not is_busy and all(job is None for job in jobs)

    def _run(self) -> None:
        while True:
            with self._changed:
                job = self._next_job()
                if job is None:
                    return
                begin_s = self._busy_since_s = self._clock()
                self.pace.begin(begin_s)
                self._changed.notify_all()
            _do(self._handle, job)
            with self._changed:
                self._handle_s = self._clock() - begin_s
                self._busy_since_s = None
                self._changed.notify_all()

    def _next_job(self) -> Job | None:
        """Wait for a job and take it; None when the worker is closed. Holds the condition."""
        while not self._is_closed:
            if self._urgent is not None:
                job, self._urgent = self._urgent, None
                return job
            wait_s = self.pace.wait_s(self._clock())
            if self._ahead is None and self._waiting is None:
                self._changed.wait()
            elif wait_s > 0.0:
                self._changed.wait(wait_s)
            elif self._ahead is not None:
                job, self._ahead = self._ahead, None
                return job
            else:
                job, self._waiting = self._waiting, None
                return job
        return None

    def _run_ahead(self) -> None:
        assert self._look_ahead is not None
        while True:
            with self._changed:
                job = self._next_to_look_at()
                if job is None:
                    return
                replaced, self._ahead, self._waiting = self._ahead, job, None
                self._is_looking = True
            if replaced is not None:
                _do(self._on_replaced, replaced)
            begin_s = self._clock()
            _do(self._look_ahead, job)
            with self._changed:
                self._look_s = self._clock() - begin_s
                self._is_looking = False
                self._changed.notify_all()

    def _next_to_look_at(self) -> Job | None:
        """Wait until it is time to look ahead; None when the worker is closed. Holds the condition.

        The first look begins as soon as it can: nobody knows yet how long it takes.
        """
        while not self._is_closed:
            wait_s = None if self._waiting is None else self._look_in_s()
            if wait_s is not None and wait_s <= 0.0:
                return self._waiting
            self._changed.wait(wait_s)
        return None

    def _look_in_s(self) -> float | None:
        """In how many seconds to look ahead; None while there is no run to go by."""
        if self._busy_since_s is None or self._handle_s is None:
            return None
        now_s = self._clock()
        next_s = max(self._busy_since_s + self._handle_s - now_s, self.pace.wait_s(now_s))
        return next_s - (self._handle_s if self._look_s is None else LEAD * self._look_s)


def _do(action: Callable[[Job], None], job: Job) -> None:
    """Report what an action raises as Python does at the end of a thread, and go on."""
    try:
        action(job)
    except Exception:
        threading.excepthook(
            threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
        )
