"""What `openvla-ros finetune` shows in a terminal: the plan before, the figures after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openvla_ros.cli.output import wide_console

if TYPE_CHECKING:
    from openvla_ros.training.plan import Plan

_KINDS = (
    ("free_running", "free-running: what the robot gets"),
    ("teacher_forced", "teacher-forced: what training sees"),
    ("constant", "baseline: always the most frequent ids"),
    ("previous", "baseline: the action before"),
    ("swapped_images", "free-running, images of other episodes"),
)
_DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_GB = 1e9


def show_plan(plan: Plan) -> None:
    """Print what a run would do."""
    console = wide_console()
    console.print(_data_table(plan.data))
    facts = Table(show_header=False, box=None)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _plan_facts(plan):
        facts.add_row(name, escape(text))
    console.print(facts)


def show_result(folder: Path, metrics: Mapping[str, Any], plots: Sequence[Path]) -> None:
    """Print the figures of a finished run, and where its result lies."""
    console = wide_console()
    for name in ("training", "held_out"):
        if name in metrics["evaluation"]:
            console.print(_slice_table(name, metrics["evaluation"][name]))
    reached = ", the target is reached" if metrics["reached_target"] else ""
    console.print(f"{metrics['step']} steps{reached}. Result: [bold]{escape(str(folder))}[/]")
    _show_line(console, "plots: ", ", ".join(str(path) for path in plots))
    _show_line(console, "next:  ", f"openvla-ros replay RECORDINGS --checkpoint {folder} --out DIR")


def _show_line(console: Console, name: str, text: str) -> None:
    if text:
        console.print(f"[dim]{name}[/]{escape(text)}", soft_wrap=True, highlight=False)


def _data_table(data: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="Data", title_justify="left")
    table.add_column("statistics key", style="bold", overflow="fold")
    for heading in ("episodes", "steps", "held-out episodes", "held-out steps"):
        table.add_column(heading, justify="right")
    table.add_column("steps left out", overflow="fold")
    for name, figures in data.items():
        left_out = ", ".join(f"{count} {why}" for why, count in figures["left_out"].items())
        table.add_row(
            escape(name),
            *(
                str(figures[key])
                for key in ("episodes", "steps", "held_out_episodes", "held_out_steps")
            ),
            escape(left_out) or "none",
        )
    return table


def _plan_facts(plan: Plan) -> list[tuple[str, str]]:
    share = 100 * plan.trained / plan.total
    pictures = (
        "pictures at the size of the recordings"
        if plan.picture_bytes is None
        else f"pictures {plan.picture_bytes / _GB:.1f} GB in the cache"
    )
    duration = (
        plan.duration_source
        if plan.duration_s is None
        else f"{plan.duration_s / 3600:.1f} h {plan.duration_source}"
    )
    facts = [
        ("base", plan.base),
        ("strategy", plan.strategy),
        ("parameters", f"{plan.trained:,} of {plan.total:,} are trained ({share:.2f} %)"),
        ("memory", f"about {plan.memory.describe()}; per device, before the first step"),
        (
            "disk",
            f"checkpoints {plan.checkpoint_bytes / _GB:.1f} GB, result "
            f"{plan.result_bytes / _GB:.1f} GB, {pictures}; {plan.free_bytes / _GB:.1f} GB free",
        ),
        ("steps", f"{plan.steps} of {plan.samples_per_step} samples: {plan.epochs:.1f} epochs"),
        ("work", f"{plan.work_tflop / 1000:.3g} PFLOP"),
        ("duration", duration),
    ]
    advice = "; ".join(f"{text}: {total / _GB:.1f} GB" for text, total in plan.memory.advice[:4])
    if advice:
        facts.append(("less memory", advice))
    return [*facts, *(("to be said", question) for question in plan.open_questions)]


def _slice_table(name: str, figures: Mapping[str, Any]) -> Table:
    count = figures["free_running"]["samples"]
    title = f"{name.replace('_', '-')} episodes, {count} steps: share of right ids"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("all", justify="right", style="bold")
    per_dimension = figures["free_running"]["accuracy_per_dimension"]
    names = _DIMENSIONS if len(per_dimension) == len(_DIMENSIONS) else range(len(per_dimension))
    for dimension in names:
        table.add_column(str(dimension), justify="right")
    table.add_column("L1", justify="right")
    for kind, label in _KINDS:
        score = figures.get(kind)
        if score:
            shares = (score["accuracy"], *score["accuracy_per_dimension"])
            table.add_row(label, *(f"{100 * s:.1f} %" for s in shares), f"{score['l1']:.4f}")
    return table
