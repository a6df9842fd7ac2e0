"""Numbers into a document: one section between its markers, with what they were measured by."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from process_usage import machine

ROOT = Path(__file__).resolve().parents[1]


def write_section(path: Path, section: str, text: str, about: str) -> None:
    """Replace one section of a document, between its markers, by new numbers and their origin."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    document = path.read_text(encoding="utf-8")
    assert begin in document and end in document, f"{path} needs {begin} and {end}"
    head, rest = document.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n{about}\n\n{text}\n{end}{tail}", encoding="utf-8")


def origin(seed: int | None, libraries: str) -> str:
    """Return command, machine, commit and date of a measurement.

    Args:
        seed: Of the run, if it has one.
        libraries: What else decided the numbers, for the end of the line about the machine.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    about = machine()
    command = " ".join(["python", *sys.argv])
    return (
        f"`{command}`, commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}"
        + ("" if seed is None else f", seed {seed}")
        + f"\n\nMachine: {about['cpu']}, {about['cores']} cores, {about['memory']}, Python "
        f"{sys.version.split()[0]}, {libraries}."
    )
