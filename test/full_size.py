#!/usr/bin/env python3
"""Build openvla-7b's shape with random weights, save it, load it again and predict, measuring each.

    python test/full_size.py --folder /path/with/16GB --json

Build and prediction run in processes of their own, so that each has its own peak memory. The prompt
ids are those of the genuine Llama-2 tokenizer. The weights are random: time and memory mean
something, the action does not. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).resolve().parent / "reference"
PROMPT_IDS = REFERENCE / "goldens" / "real_llama_token_ids.json"
ACTION_DIM = 7


def main() -> None:
    """Run one stage, or all of them in child processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--profile", default="7b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--predictions", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint there")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--stage", choices=["build", "predict"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    checkpoint = arguments.folder / f"random-{arguments.profile}"
    if arguments.stage:
        stage = build if arguments.stage == "build" else predict
        print(json.dumps(stage(checkpoint, arguments)))
        return
    report = {"machine": machine()}
    try:
        for name in ("build", "predict"):
            report[name] = run_stage(name)
            if not arguments.json:
                print(name, json.dumps(report[name], indent=2), flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
    if arguments.json:
        print(json.dumps(report, indent=2))


def run_stage(name: str) -> dict:
    """Run this file again for one stage and return what it printed."""
    command = [sys.executable, __file__, *sys.argv[1:], "--stage", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def build(checkpoint: Path, arguments: argparse.Namespace) -> dict:
    """Write the checkpoint."""
    from openvla_ros.model.random_weights import build_checkpoint

    start = time.perf_counter()
    build_checkpoint(arguments.profile, checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return {
        "seconds": time.perf_counter() - start,
        "safetensors_bytes": size,
        "peak_rss_bytes": peak_rss(),
    }


def predict(checkpoint: Path, arguments: argparse.Namespace) -> dict:
    """Load the checkpoint and generate action tokens for real prompt ids."""
    import torch

    from openvla_ros.model.checkpoint import load_model, read_config
    from openvla_ros.model.processing import ImageProcessor, append_empty_token
    from openvla_ros.model.runtime_choices import choose_device, choose_dtype

    device, why = choose_device(arguments.device)
    dtype, _ = choose_dtype(arguments.dtype, device)
    start = time.perf_counter()
    model = load_model(checkpoint, read_config(checkpoint), device=device, dtype=dtype)
    loaded = time.perf_counter() - start
    ids = json.loads(PROMPT_IDS.read_text())["inference"][0]["ids"]
    input_ids = append_empty_token(torch.tensor([ids])).to(device)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    pixels = ImageProcessor.from_pretrained(checkpoint)(image)[None].to(device)
    runs = []
    for _ in range(arguments.predictions):
        start = time.perf_counter()
        tokens = model.generate_action_tokens(input_ids, pixels, ACTION_DIM)
        runs.append({"total_s": time.perf_counter() - start, **tokens.timings})
    peak_gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "device": f"{device}: {why}",
        "dtype": str(dtype),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_seconds": loaded,
        "predictions": runs,
        "token_ids": tokens.token_ids,
        "peak_rss_bytes": peak_rss(),
        "peak_gpu_bytes": peak_gpu,
    }


def peak_rss() -> int:
    """Bytes: the most memory this process ever held, mapped files included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine() -> dict:
    """What the figures depend on."""
    cores = subprocess.run(["nproc"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "cores": int(cores),
    }


if __name__ == "__main__":
    main()
