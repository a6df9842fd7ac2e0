"""Measures what it brings to prepare the next image while the network is busy, and what it costs.

    python test/pipeline_run.py --network-ms 31 --seconds 10

Decoding, resizing, mailbox and threads are the node's. The network is a wait, as a GPU is for its
host, so this needs none. It prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from openvla_ros.messages import compressed_to_rgb, image_to_rgb
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.processing import ImageProcessor
from openvla_ros.ros.frames import Frame
from openvla_ros.ros.inference import Predictor
from openvla_ros.ros.worker import InferenceWorker
from openvla_ros.types import PRIMARY, Observation

REFERENCE = Path(__file__).resolve().parent / "reference"
SETTINGS = REFERENCE / "checkpoints" / "A_fused" / "preprocessor_config.json"
PICTURE = REFERENCE / "images" / "img1_640x480.png"
FINE_TUNED = ImageOptions(jpeg_round_trip=True, lanczos3=True, center_crop=True)
WARM_UP_S = 1.0
POLICY_RATE_HZ = 100.0  # no limit


class WaitingPolicy(MockPolicy):
    """Prepares as OpenVLA does, and waits where its network would compute."""

    def __init__(self, processor: ImageProcessor, network_s: float) -> None:
        super().__init__((0.0,) * 7, latency_s=network_s)
        self._processor = processor

    def prepare(self, observation: Observation) -> Observation:
        """Return the observation with the pixels of both towers."""
        return replace(observation, prepared=self._processor(observation.images[PRIMARY]))


@dataclass
class Run:
    """What one camera and one policy gave.

    Attributes:
        prepare_ms: CPU time from message to pixels, median.
        ages_ms: (N,) arrival of the image to its answer.
        rate_hz: Answers per second.
        cores: CPU time per second.
    """

    prepare_ms: float
    ages_ms: np.ndarray
    rate_hz: float
    cores: float


def run(
    message: Any, options: ImageOptions, arguments: argparse.Namespace, *, looks_ahead: bool
) -> Run:
    """Return what a camera that repeats one message gives."""
    processor = ImageProcessor(json.loads(SETTINGS.read_text()))
    processor.options |= options
    policy = WaitingPolicy(processor, arguments.network_ms / 1000.0)
    decode = compressed_to_rgb if hasattr(message, "format") else image_to_rgb
    predictor = Predictor(policy, decode, (0, 0, 0, 0), time.monotonic, logging.getLogger())
    prepare_ms = cpu_ms(lambda: predictor.prepare(Frame(message, 1, 1, 0.0, "pick", 0)))
    begin_s = time.monotonic() + WARM_UP_S
    answers: list[tuple[float, float]] = []

    def handle(frame: Frame) -> None:
        predictor.predict(frame)
        answers.append((frame.received_s, time.monotonic()))

    worker: InferenceWorker[Frame] = InferenceWorker(
        handle,
        look_ahead=predictor.prepare if looks_ahead else None,
        min_interval_s=1.0 / POLICY_RATE_HZ,
    )
    over = threading.Event()
    next_s, cpu_s = time.monotonic(), 0.0
    while next_s < begin_s + arguments.seconds:
        cpu_s = cpu_s or (time.process_time() if next_s >= begin_s else 0.0)
        worker.offer(Frame(message, 1, 1, time.monotonic(), "pick", 0))
        next_s += 1.0 / arguments.camera_hz
        over.wait(max(next_s - time.monotonic(), 0.0))
    cores = (time.process_time() - cpu_s) / arguments.seconds
    assert worker.close(10.0)
    kept = [answer for answer in answers if answer[0] >= begin_s]
    arrived, answered = np.array(kept).T
    span_s = answered[-1] - answered[0]
    return Run(prepare_ms, 1000.0 * (answered - arrived), (len(kept) - 1) / span_s, cores)


def cpu_ms(work: Callable[[], None], calls: int = 50) -> float:
    """Return the median CPU time of a call in this thread: other processes change it little."""
    spent = []
    for _ in range(calls):
        start_s = time.thread_time()
        work()
        spent.append(time.thread_time() - start_s)
    return 1000.0 * float(np.median(spent[calls // 5 :]))


def messages() -> dict[str, Any]:
    """Return the same picture as raw and as JPEG message, by name."""
    bgr = cv2.imread(str(PICTURE))
    height, width = bgr.shape[:2]
    raw = SimpleNamespace(
        encoding="bgr8", height=height, width=width, step=3 * width, data=bgr.tobytes()
    )
    jpeg = SimpleNamespace(format="jpeg", data=cv2.imencode(".jpg", bgr)[1].tobytes())
    return {"raw": raw, "JPEG": jpeg}


def main() -> None:
    """Run every case without and with looking ahead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network-ms", type=float, default=31.0)
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| image | path | prepare, CPU ms | when | answers/s | age p50, p99 [ms] | cores |")
    print("|---|---|--:|---|--:|--:|--:|")
    for name, message in messages().items():
        for path, options in (("base", ImageOptions()), ("fine-tuned", FINE_TUNED)):
            for looks_ahead in (False, True):
                result = run(message, options, arguments, looks_ahead=looks_ahead)
                p50, p99 = np.percentile(result.ages_ms, [50, 99])
                when = "ahead" if looks_ahead else "in turn"
                print(
                    f"| {name} | {path} | {result.prepare_ms:.1f} | {when} | {result.rate_hz:.1f} "
                    f"| {p50:.0f}, {p99:.0f} | {result.cores:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
