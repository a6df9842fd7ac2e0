"""How far a replay is, on standard error: weights that are read, steps that are answered, the rest.

For people at a terminal; elsewhere only what must be known is printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class ReplayProgress:
    """Three things that `evaluation.replay.run` tells, drawn as bars and lines of one screen."""

    bars: Progress
    tasks: dict[str, TaskID]

    def loading(self, done: int, total: int, what: str) -> None:
        """Show how many bytes are read."""
        self._show(what, done, total, f"{done / 1e9:.1f} of {total / 1e9:.1f} GB")

    def steps(self, variant: str, done: int, total: int) -> None:
        """Show how many steps a variant has answered."""
        if total:
            self._show(variant, done, total, f"{done} of {total} steps")

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        line = f"[yellow]note:[/] {escape(text)}"
        self.bars.console.print(line, soft_wrap=True, highlight=False)

    def _show(self, name: str, done: int, total: int, amount: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(escape(name), total=total, amount=amount)
        self.bars.update(self.tasks[name], completed=done, total=total, amount=amount)


@contextmanager
def replay_progress(console: Console | None = None) -> Iterator[ReplayProgress]:
    """Give what shows progress; no bar of it stays on screen.

    Args:
        console: Where to draw; None = standard error.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bars:
        yield ReplayProgress(bars, {})
