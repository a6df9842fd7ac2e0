"""A bag through the real node over DDS: the answers of the offline policy, and no motion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")
pytest.importorskip("rosbags", reason="bags need the extra `bags`")

from openvla_ros.data.bag_file import RAW_IMAGE, BagFile, typestore_for
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.live_result import LIVE_FILE
from openvla_ros.ros.live_replay import LiveOptions, LiveReplayError, run_live_replay

pytestmark = pytest.mark.ros

TEXT = "std_msgs/msg/String"
INSTRUCTION = "put the carrot on the plate"
BEGIN_NS = 1_700_000_000_000_000_000
PERIOD_NS = 200_000_000
#: Nothing here is about being late: a loaded machine must not change what is answered.
PATIENT = {
    "policy_rate": 30.0,
    "image_max_age": 5.0,
    "image_timeout": 5.0,
    "max_action_age": 60.0,
    "inference_timeout": 60.0,
    "hang_timeout": 600.0,
}


def bag_of(path: Path, images: np.ndarray) -> list[int]:
    """Write an instruction and raw images at 5 Hz; return the stamps."""
    store = typestore_for([RAW_IMAGE, TEXT])
    kinds = store.types
    file = BagFile(path, {"/camera": RAW_IMAGE, "/task": TEXT})
    text = bytes(store.serialize_cdr(kinds[TEXT](INSTRUCTION), TEXT))
    file.write("/task", BEGIN_NS, text)
    stamps = [BEGIN_NS + (k + 1) * PERIOD_NS for k in range(len(images))]
    for stamp, image in zip(stamps, images, strict=True):
        time = kinds["builtin_interfaces/msg/Time"](stamp // 10**9, stamp % 10**9)
        height, width, _ = image.shape
        message = kinds[RAW_IMAGE](
            header=kinds["std_msgs/msg/Header"](time, "camera"),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=image.reshape(-1),
        )
        file.write("/camera", stamp, bytes(store.serialize_cdr(message, RAW_IMAGE)))
    file.close()
    return stamps


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (8, 48, 64, 3), np.uint8)


def test_what_the_mock_answers_over_dds_is_kept_and_counted(tmp_path: Path, images) -> None:
    stamps = bag_of(tmp_path / "bag", images)
    action = [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    options = LiveOptions(
        bag=tmp_path / "bag",
        image_topic="/camera",
        instruction_topic="/task",
        parameters={"backend": "mock", "mock_action": action, "mock_latency_s": 0.0, **PATIENT},
    )
    told: list[str] = []
    result = run_live_replay(options, [], tmp_path / "out", told.append)
    assert result.images_in_bag == len(stamps)
    assert 1 <= result.answered <= result.images_received <= len(stamps)
    assert set(result.drop_reasons) <= {"DRY_RUN", "HOLD"}, "nothing was executed"
    assert result.compared == 0, "there was nothing to compare with"
    assert json.loads((tmp_path / "out" / LIVE_FILE).read_text())["answered"] == result.answered
    assert any("playing" in text for text in told)


@pytest.mark.slow
def test_live_answers_equal_the_offline_policy_on_the_same_pixels(
    tmp_path: Path, images, tiny_checkpoint: Path
) -> None:
    from openvla_ros.policy import OpenVLAPolicy

    stamps = bag_of(tmp_path / "bag", images)
    policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cpu", unnorm_key="bridge_orig")
    answers = [policy.predict_action(image, INSTRUCTION) for image in images]
    record = EpisodeRecord(
        episode="0",
        source="bag",
        instruction=INSTRUCTION,
        rate_hz=5.0,
        stamps_ns=np.array(stamps),
        recorded=np.zeros((len(stamps), 7)),
        predicted=np.array([a.action for a in answers]),
        normalized=np.array([a.normalized for a in answers]),
        token_ids=np.array([a.token_ids for a in answers]),
        is_valid=np.ones(len(stamps), bool),
        latency_ms=np.ones(len(stamps)),
        passes=np.full(len(stamps), 7),
    )
    options = LiveOptions(
        bag=tmp_path / "bag",
        image_topic="/camera",
        instruction_topic="/task",
        parameters={
            "checkpoint": str(tiny_checkpoint),
            "unnorm_key": "bridge_orig",
            "device": "cpu",
            **PATIENT,
        },
        rate=0.5,
    )
    result = run_live_replay(options, [record], tmp_path / "out")
    assert result.compared >= len(stamps) // 2, result
    assert result.equal == result.compared, result


@pytest.mark.slow
def test_a_node_that_cannot_be_configured_says_why(tmp_path: Path, images) -> None:
    bag_of(tmp_path / "bag", images[:2])
    options = LiveOptions(
        bag=tmp_path / "bag",
        image_topic="/camera",
        instruction_topic="/task",
        parameters={"checkpoint": str(tmp_path / "nowhere")},
    )
    with pytest.raises(LiveReplayError, match="nowhere"):
        run_live_replay(options, [], tmp_path / "out")
    assert not (tmp_path / "out" / LIVE_FILE).exists()


def test_a_missing_topic_or_instruction_is_refused_before_anything_starts(
    tmp_path: Path, images
) -> None:
    bag_of(tmp_path / "bag", images[:2])
    with pytest.raises(ConfigurationError, match=r"image topics: /camera"):
        run_live_replay(LiveOptions(tmp_path / "bag", "/cam"), [], tmp_path / "out")
    with pytest.raises(ConfigurationError, match="no instruction topic"):
        run_live_replay(LiveOptions(tmp_path / "bag", "/camera"), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
