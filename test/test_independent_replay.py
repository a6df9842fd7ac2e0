"""The figures in metrics.json are those of a second computation, which reads the files itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import independent_replay as independent
import numpy as np
import pytest
from replay_cases import small_checkpoint

from openvla_ros.cli import main
from openvla_ros.model.random_weights import BRIDGE_STATISTICS
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.frame_sources import shared_data_folder

KEY = "bridge_orig"
ROOT = Path(__file__).resolve().parents[1]
DATA = shared_data_folder()
CAMERA_1 = "observation.images.image_1"
BAG_TOPICS = ("/camera/image_raw/compressed", "/action/raw", "/instruction")
TOPIC_FILE = ["--topics", str(ROOT / "config" / "topics" / "bridge_sample.yaml")]
CASES: dict[str, tuple[str, list[str], Callable]] = {
    "npz": (
        "bridge_octo_debug",
        ["--camera", "image_0", "--rate-hz", "5"],
        independent.from_npz,
    ),
    "bag": (
        "bridge_rosbag2_mcap",
        TOPIC_FILE,
        lambda folder: independent.from_bag(folder, *BAG_TOPICS),
    ),
    "bag of single frames": (
        "bridge_v2_frames100_rosbag2_mcap",
        # One frame a second: every frame is an episode of one step, with its own instruction.
        TOPIC_FILE,
        lambda folder: independent.from_bag(folder, *BAG_TOPICS),
    ),
    "lerobot": (
        "lerobot_v21_bridge",
        ["--camera", CAMERA_1],
        lambda folder: independent.from_lerobot(folder, CAMERA_1),
    ),
}

pytestmark = pytest.mark.skipif(DATA is None, reason="no recorded data on this machine")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> OpenVLAPolicy:
    return OpenVLAPolicy.from_pretrained(checkpoint, device="cpu", unnorm_key=KEY)


@pytest.mark.parametrize(
    "case", ["bag", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "bag")]
)
def test_every_figure_is_that_of_the_second_computation(
    case: str, checkpoint: Path, policy: OpenVLAPolicy, tmp_path: Path
) -> None:
    source, options, read = CASES[case]
    demonstrations = read(DATA / source)
    quantiles = BRIDGE_STATISTICS[KEY]["action"]

    def answer(image: np.ndarray, instruction: str) -> tuple[np.ndarray, list[int]]:
        prediction = policy.predict_action(image, instruction)
        return prediction.action, prediction.token_ids

    expected = independent.judged(
        demonstrations, answer, np.array(quantiles["q01"])[:6], np.array(quantiles["q99"])[:6]
    )
    command = ["replay", str(DATA / source), *options, "--checkpoint", str(checkpoint)]
    command += ["--unnorm-key", KEY, "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*command, "--no-probes", "--no-bag", "--json"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    variant = found["variants"]["base"]
    assert variant["episodes"] == len(demonstrations)
    assert variant["steps"] == sum(len(d.images) for d in demonstrations)
    assert found["units"] == {"translation": "mm", "rotation": "deg"}
    for name, figures in expected.items():
        block = variant["metrics"] if name == "policy" else variant["baselines"][name]
        if figures is None:
            assert block is None, "every episode has one step: nothing comes before it"
            continue
        ours = {
            "translation_error": block["translation_error"]["mean"],
            "rotation_error": block["rotation_error"]["mean"],
            "direction_cosine": block["direction_cosine"]["mean"],
            "gripper_accuracy": block["gripper"]["accuracy"],
            "gripper_f1": block["gripper"]["f1"] or 0.0,
            "tokens_equal": block["tokens"]["equal"],
        }
        for figure, value in figures.items():
            assert ours[figure] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, figure)
