"""The GPU kernels where there is no GPU: run by Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kernels_agree_with_plain_torch_without_a_gpu() -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install triton (Linux only)")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "test_triton_operations.py"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout, done.stdout
