#!/usr/bin/env python3
"""Read a checkpoint for the engine and say how long that takes and how much memory it needs.

    python test/start_up.py CHECKPOINT --quantization int8 --device cpu

Twice for a low-bit mode: the second start finds the rounded weights that the first has kept. Where
they go: OPENVLA_ROS_CACHE. The last line is JSON. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path

import torch

from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.engine.streaming import stream
from openvla_ros.engine.weights import LanguageWeights
from openvla_ros.model.checkpoint import empty_model, read_config
from openvla_ros.model.modeling import OpenVLAForActionPrediction


def main() -> None:
    """Start once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = read_config(arguments.checkpoint)
    start = time.perf_counter()
    model = empty_model(config, getattr(torch, arguments.dtype))
    before = resident("VmRSS")
    weights, how = stream(
        model, arguments.checkpoint, device=device, quantization=arguments.quantization
    )
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else resident("VmHWM") - before
    size = weight_bytes(model, weights)
    report = {
        "quantization": arguments.quantization,
        "seconds": round(time.perf_counter() - start, 2),
        "how": how,
        "weights_bytes": size,
        "peak_bytes": peak,
        "peak_share": round(peak / size, 3),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


def resident(name: str) -> int:
    """Return bytes of a line of /proc/self/status, such as VmHWM, the highest VmRSS so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def weight_bytes(model: OpenVLAForActionPrediction, weights: LanguageWeights) -> int:
    """Return the bytes of everything that was read, views counted once."""
    tensors = list(model.parameters())
    for layer in weights.layers:
        for field in fields(layer):
            matrix = getattr(layer, field.name)
            if isinstance(matrix, LowBitMatrix):
                tensors += [matrix.data, matrix.scales]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


if __name__ == "__main__":
    main()
