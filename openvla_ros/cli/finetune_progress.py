"""How far a fine-tuning run is, on standard error: a bar for people, lines for a file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0
_STEPS = "training"


class FinetuneProgress:
    """Draws what a run tells.

    Args:
        bars: Where to draw; without a terminal it gets lines.
        log_every: Steps between lines.
    """

    def __init__(self, bars: Progress, log_every: int) -> None:
        self._bars = bars
        self._log_every = log_every
        self._tasks: dict[str, TaskID] = {}
        self._last_line_s = 0.0

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        line = f"[yellow]note:[/] {escape(text)}"
        self._bars.console.print(line, soft_wrap=True, highlight=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show something before or after the training."""
        self._show(what, done, total, f"{done} of {total}")

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Show steps, loss and speed."""
        shown = [f"step {done} of {total}", f"loss {figures['loss']:.3f}"]
        shown.append(f"accuracy {100 * figures['action_accuracy']:.1f} % (teacher-forced)")
        if "samples_per_s" in figures:
            shown.append(f"{figures['samples_per_s']:.1f} samples/s")
        self._show(_STEPS, done, total, ", ".join(shown))
        now_s = time.monotonic()
        is_due = done % self._log_every == 0 and now_s - self._last_line_s >= _LINE_EVERY_S
        if not self._bars.console.is_terminal and (is_due or done == total):
            self._last_line_s = now_s
            self._bars.console.print(", ".join(shown), soft_wrap=True, highlight=False)

    def _show(self, name: str, done: int, total: int, amount: str) -> None:
        if name not in self._tasks:
            # Steps that an earlier process has done say nothing about the speed of this one.
            self._tasks[name] = self._bars.add_task(
                escape(name), total=total, amount=amount, completed=done - 1
            )
        self._bars.update(self._tasks[name], completed=done, total=total, amount=amount)


@contextmanager
def finetune_progress(log_every: int, console: Console | None = None) -> Iterator[FinetuneProgress]:
    """Give what a run is watched with; no bar of it stays on screen.

    Args:
        log_every: Steps between lines where there is no terminal.
        console: Where to draw; None = standard error.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    console = console or Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        yield FinetuneProgress(bars, log_every)
