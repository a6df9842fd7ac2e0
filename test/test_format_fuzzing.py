"""Damaged recordings end in an error of ours or in whole episodes: no crash, no hang, no bomb.

test/format_fuzzing.py does it, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openvla_ros.ros.frame_sources import shared_data_folder

pytestmark = pytest.mark.slow
pytest.importorskip("pyarrow")
pytest.importorskip("av")

FILES = {
    "tfrecord": 150,
    "tfrecord_resealed": 250,
    "tfrecord_alone": 150,
    "features": 100,
    "npz": 150,
    "npz_resealed": 200,
    "parquet": 200,
    "parquet_v30": 100,
    "episodes_v30": 100,
    "info": 100,
    "tasks": 100,
    "video": 200,
    "av1": 100,
}
DEADLINE_S = 900
SCRIPT = Path(__file__).with_name("format_fuzzing.py")


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_refused_or_read_whole(kind: str, tmp_path: Path) -> None:
    """In its first run it found an .npz member without a header, and a task without a text."""
    if kind == "av1" and shared_data_folder() is None:
        pytest.skip("the recorded AV1 video is not on this machine")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, "0", str(FILES[kind]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=SCRIPT.parents[1],
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parents[1]}:{SCRIPT.parent}"},
    )
    current = tmp_path / "current"
    at = current.read_text() if current.exists() else "the undamaged file"
    assert done.returncode == 0, f"ended with {done.returncode} at {at}: {done.stderr[-4000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["files"] == FILES[kind] == counts["refused"] + counts["whole"]
    # Most wounds show; a reader that refuses none looks at nothing.
    assert counts["refused"] > FILES[kind] // 3, counts
