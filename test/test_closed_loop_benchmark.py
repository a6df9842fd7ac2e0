"""The closed-loop document is made from results; those of other weights do not count."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import closed_loop_benchmark as benchmark
import pytest

from openvla_ros.sim.closed_loop.episode import EpisodeResult
from openvla_ros.sim.closed_loop.evaluation import Trial, report

pytest.importorskip("matplotlib", reason="needs the extra `plots`")


def row(quantization: str = "none", **trial: Any) -> dict[str, Any]:
    results = [
        EpisodeResult(n, "reach the red block", "red", "blue", "red", n < 3, 7.0 * (n + 1), ["red"])
        for n in range(4)
    ]
    policy = {
        "kind": "checkpoint",
        "checkpoint": "somewhere",
        "fingerprint": "0123456789abcdef0123",
        "quantization": quantization,
        "choices": {"dtype": "float32: exact"},
    }
    made = Trial(episodes=4, **trial)
    return report(results, made, policy, through="process", arm="viperx")


def rows_of(name: str) -> list[dict[str, Any]]:
    options = shlex.split(benchmark.MEASUREMENTS[name])

    def listed(option: str, otherwise: str) -> list[str]:
        return (options[options.index(option) + 1] if option in options else otherwise).split(",")

    return [
        row(quantization, latency_ms=float(latency), is_swapped="--swap-instruction" in options)
        for quantization in listed("--quantization", "none")
        for latency in listed("--latency-ms", "0")
    ]


def test_the_document_has_every_number_with_its_command(tmp_path: Path) -> None:
    path = tmp_path / "closed_loop.md"
    (tmp_path / "raw").mkdir()
    benchmark.write_document(path, {name: rows_of(name) for name in benchmark.MEASUREMENTS})
    text = path.read_text(encoding="utf-8")
    for options in benchmark.MEASUREMENTS.values():
        assert f"openvla-ros sim eval {options}" in text
    assert "| through ROS topics | 3 of 4 | 30 to 95 % | 14.0 | 4 | - | 0 | 0 | 100% |" in text
    assert "| int8 (rest float32) | 3 of 4 |" in text
    assert "{" not in text, "a field without a value"
    for plot in ("latency", "quantization"):
        assert (tmp_path / "plots" / f"closed_loop_{plot}.png").stat().st_size > 5_000
    raw = json.loads((tmp_path / "raw" / "closed_loop.json").read_text(encoding="utf-8"))
    assert "results" not in raw["ros"][0] and raw["ros"][0]["successes"] == 3


def test_a_result_of_other_weights_or_options_is_measured_again(tmp_path: Path) -> None:
    weights = tmp_path / "checkpoint"
    weights.mkdir()
    (weights / "weights").write_text("one")
    run = benchmark.Run(tmp_path, str(weights))
    assert run.read("ros") is None
    options = ["--checkpoint", str(weights), *shlex.split(benchmark.MEASUREMENTS["ros"])]
    command = shlex.join(["openvla-ros", "sim", "eval", *options, "--out", "ros.part"])
    policy = {"kind": "checkpoint", "fingerprint": benchmark.fingerprint(weights)}
    stored = {"policy": policy, "command": command}
    (tmp_path / "ros.json").write_text(json.dumps(stored), encoding="utf-8")
    assert run.read("ros") == [stored]
    (weights / "weights").write_text("two")
    assert benchmark.Run(tmp_path, str(weights)).read("ros") is None
    (tmp_path / "process.json").write_text(json.dumps(stored), encoding="utf-8")
    assert run.read("process") is None
