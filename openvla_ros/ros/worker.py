"""One thread that owns the policy, and a mailbox with room for one job: the newest wins."""

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

    Attributes:
        pace: How much time lies between the beginnings of two jobs; urgent ones do not wait for it.
    """

    def __init__(
        self,
        handle: Callable[[Job], None],
        *,
        min_interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        name: str = "inference",
    ) -> None:
        """Start the thread.

        Args:
            handle: Must not raise: what it raises ends up in `threading.excepthook`, and the worker
                goes on with the next job.
            min_interval_s: See `Pace`.
            clock: Steady time in seconds.
            name: Of the thread, for who reads stacks.
        """
        self.pace = Pace(min_interval_s)
        self._handle = handle
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: Job | None = None
        self._urgent: Job | None = None
        self._busy_since_s: float | None = None
        self._is_closed = False
        # A daemon, because a policy that hangs in a driver call must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

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
            jobs = [job for job in (self._urgent, self._waiting) if job is not None]
            self._urgent = self._waiting = None
            return jobs

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Return True when no job waits or runs; False when that lasts longer."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Drop what waits and end the thread; return False when its job does not end in time."""
        with self._changed:
            self._is_closed = True
            self._urgent = self._waiting = None
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _is_idle(self) -> bool:
        return self._busy_since_s is None and self._waiting is None and self._urgent is None

    def _run(self) -> None:
        while True:
            with self._changed:
                job = self._next_job()
                if job is None:
                    return
                self._busy_since_s = self._clock()
                self.pace.begin(self._busy_since_s)
            try:
                self._handle(job)
            except Exception:
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
            finally:
                with self._changed:
                    self._busy_since_s = None
                    self._changed.notify_all()

    def _next_job(self) -> Job | None:
        """Wait for a job and take it; None when the worker is closed. Holds the condition."""
        while not self._is_closed:
            if self._urgent is not None:
                job, self._urgent = self._urgent, None
                return job
            wait_s = self.pace.wait_s(self._clock())
            if self._waiting is not None and wait_s <= 0.0:
                job, self._waiting = self._waiting, None
                return job
            self._changed.wait(wait_s if self._waiting is not None else None)
        return None
