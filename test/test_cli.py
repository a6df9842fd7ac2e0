"""The command line: exit codes, JSON that is only JSON, messages instead of tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.action_specs import described_keys
from openvla_ros.cli import main
from openvla_ros.cli.output import needs, print_json
from openvla_ros.errors import CheckpointError, DependencyError
from openvla_ros.ros.diagnosis import NEEDED_FRAMES, VGA_FRAME_BYTES, fast_dds_finding

ROOT = Path(__file__).resolve().parents[1]
BRIDGE_Q01 = [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0]
BRIDGE_Q99 = [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0]
MASK = [True] * 6 + [False]


def run_without(modules: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter that lacks some libraries."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r})); "
        f"from openvla_ros.cli import main; sys.exit(main({arguments!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def entry(q01: list[float], q99: list[float], mask: list[bool] | None) -> dict[str, object]:
    action: dict[str, object] = {"q01": q01, "q99": q99}
    return {"action": action | ({"mask": mask} if mask is not None else {})}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with statistics of three kinds in config.json and one beside it."""
    norm_stats = {
        "bridge_orig": entry(BRIDGE_Q01, BRIDGE_Q99, MASK),
        "kuka": entry([-1.0] * 7, [1.0] * 7, MASK),
        "ten_numbers": entry([0.0] * 10, [1.0] * 10, None),
    }
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": norm_stats}))
    mine = {"my_demos": entry([-0.01] * 7, [0.01] * 7, MASK)}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(mine))
    return tmp_path


def json_of(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> dict:
    assert main(arguments) == code
    return json.loads(capsys.readouterr().out)


def test_help_needs_neither_torch_nor_ros() -> None:
    heavy = ["torch", "transformers", "rclpy", "rosbags", "cv2", "PIL"]
    result = run_without(heavy, ["--help"])
    assert result.returncode == 0, result.stderr
    for command in ("doctor", "keys", "predict", "convert", "bench", "monitor", "demo"):
        assert command in result.stdout


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, openvla_ros.cli; "
        "print([m for m in ('torch', 'transformers', 'rclpy', 'rosbags') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_keys_of_a_local_folder_needs_no_torch(checkpoint) -> None:
    result = run_without(["torch", "transformers"], ["keys", str(checkpoint), "--json"])
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["keys"]) == 4


def test_keys_tells_steps_in_millimetres_and_degrees_where_units_are_known(
    checkpoint, capsys
) -> None:
    rows = {
        row["unnorm_key"]: row
        for row in json_of(capsys, ["keys", str(checkpoint), "--json"])["keys"]
    }
    bridge = rows["bridge_orig"]
    np.testing.assert_allclose(bridge["step_mm"]["x"], [-28.7, 28.3], atol=1e-9)
    np.testing.assert_allclose(bridge["step_deg"]["z"], np.degrees([-0.2072, 0.2038]), atol=1e-9)
    assert bridge["action_spec"]["action_hz"] == 5.0
    assert bridge["unknown_for_motion"] == []
    assert rows["kuka"]["step_mm"] is None
    assert "translation_unit_m" in rows["kuka"]["unknown_for_motion"]
    assert rows["ten_numbers"]["step_mm"] is None
    assert rows["my_demos"]["action_spec"]["action_hz"] is None


def test_keys_says_which_file_each_key_came_from(checkpoint, capsys) -> None:
    rows = json_of(capsys, ["keys", str(checkpoint), "--json"])["keys"]
    files = {row["unnorm_key"]: row["source_file"] for row in rows}
    assert files["bridge_orig"] == "config.json"
    assert files["my_demos"] == "dataset_statistics.json"


def test_the_table_of_keys_is_for_people(checkpoint, capsys) -> None:
    assert main(["keys", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    for text in ("bridge_orig", "x -28.7 … +28.3", "5 Hz", "1 open", "10 numbers", "unknown"):
        assert text in shown, text


def test_the_table_has_a_row_for_every_published_key(tmp_path, capsys) -> None:
    norm_stats = {key: entry(BRIDGE_Q01, BRIDGE_Q99, MASK) for key in described_keys()}
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": norm_stats}))
    assert main(["keys", str(tmp_path)]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert shown.count("Hz") == len(described_keys())


def test_a_mistake_is_one_message_and_exit_code_1(tmp_path, capsys) -> None:
    assert main(["keys", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "config.json" in captured.err
    assert "Traceback" not in captured.err


def test_in_json_mode_a_mistake_is_json_too(tmp_path, capsys) -> None:
    answer = json_of(capsys, ["keys", str(tmp_path), "--json"], code=1)
    assert answer["type"] == "CheckpointError"
    assert "config.json" in answer["error"]


def test_debug_shows_where_a_mistake_was_noticed(tmp_path) -> None:
    with pytest.raises(CheckpointError):
        main(["keys", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    "arguments", [["predict"], ["fly"], ["keys", "a", "--colour"], ["demo", "--rate", "0"]]
)
def test_wrong_usage_is_exit_code_2(arguments, capsys) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_extra(tmp_path) -> None:
    picture = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (8, 8)).save(picture)
    arguments = ["predict", "--checkpoint", "x/y", "--image", str(picture), "--instruction", "go"]
    result = run_without(["torch"], [*arguments, "--json"])
    assert result.returncode == 1
    assert json.loads(result.stdout)["type"] == "DependencyError"
    assert "pip install '.[model]'" in result.stderr
    assert "first torch" in result.stderr, "the default torch for Linux brings gigabytes of CUDA"


def test_without_ros_the_demo_says_how_to_get_it() -> None:
    result = run_without(["rclpy"], ["demo"])
    assert result.returncode == 1
    assert "source scripts/env.bash" in " ".join(result.stderr.split())


def test_an_import_error_of_our_own_is_not_blamed_on_the_user() -> None:
    with pytest.raises(ModuleNotFoundError), needs("something"):
        import openvla_ros.not_there  # noqa: F401
    with pytest.raises(DependencyError, match=r"'\.\[bags\]'"), needs("something"):
        raise ModuleNotFoundError("no", name="rosbags.rosbag2")


def test_predict_refuses_a_picture_that_is_none(tmp_path, capsys) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    arguments = ["--checkpoint", "x/y", "--image", str(broken), "--instruction", "go", "--json"]
    assert json_of(capsys, ["predict", *arguments], code=1)["type"] == "ImageError"


def test_predict_prints_the_reference_tokens_as_json(
    reference_dir, reference_checkpoints, capsys
) -> None:
    """Case 0 of the golden vectors, through the command a user types."""
    case = json.loads((reference_dir / "goldens" / "index.json").read_text())["cases"][0]
    instruction = case["prompt"].split("robot take to ")[1].split("?")[0]
    arguments = ["--checkpoint", str(reference_checkpoints / case["checkpoint"])]
    arguments += ["--image", str(reference_dir / "images" / case["image"])]
    arguments += ["--instruction", instruction, "--device", "cpu", "--dtype", "float32", "--json"]
    answer = json_of(capsys, ["predict", *arguments])
    assert answer["token_ids"] == case["tokens"]
    np.testing.assert_array_equal(answer["action"], case["action"])
    assert answer["is_valid"] is True
    assert answer["invalid_dims"] == []
    assert answer["unnorm_key"] == "tiny_bridge"  # the only one, not named in the call
    assert answer["timings"]["total_ms"] > 0
    assert answer["prompt"] == case["prompt"]
    assert len(answer["normalized"]) == 7


def test_doctor_gives_every_choice_with_its_reason(capsys) -> None:
    main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    choices = {f["item"]: f for f in answer["findings"] if f["section"] == "choices"}
    assert set(choices) == {"device", "dtype", "attention", "quantization", "exactness"}
    assert all(finding["reason"] for finding in choices.values())
    sections = {finding["section"] for finding in answer["findings"]}
    assert {"software", "hardware", "choices", "ROS 2"} <= sections


def test_doctor_approves_a_whole_checkpoint_and_names_the_file_of_each_key(
    reference_dir, capsys
) -> None:
    folder = reference_dir / "checkpoints" / "A_fused"
    main(["doctor", "--checkpoint", str(folder), "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    about = [f for f in findings if f["section"] in ("checkpoint", "statistics")]
    assert not [f for f in about if f["level"] == "problem"], about
    statistics = [f for f in about if f["section"] == "statistics"]
    assert statistics
    assert all(f["value"].startswith("from ") for f in statistics)
    assert {"folder", "weights", "quantization none"} <= {f["item"] for f in about}


def test_doctor_runs_a_checkpoint_and_shows_what_its_drafts_did(tiny_checkpoint, capsys) -> None:
    command = ["doctor", "--checkpoint", str(tiny_checkpoint), "--run", "--json"]
    findings = json_of(capsys, command)["findings"]
    ran = {f["item"]: f for f in findings if f["section"] == "policy"}
    assert ran["self test"]["value"] == "passed"
    assert ran["exactness"]["value"] == "self"
    assert "largest change of a logit" in ran["drafts"]["reason"]
    assert ran["latency"]["value"].endswith(" ms")
    assert ran["actions"]["value"] == "12" and ran["drafted actions"]["value"] == "11"
    refused = json_of(capsys, [*command, "--quantization", "int4"], code=1)["findings"]
    assert "multiples of 32 x 128" in refused[-1]["reason"]
    json_of(capsys, ["doctor", "--run", "--json"], code=1)


def test_doctor_fails_on_a_checkpoint_that_cannot_run(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    answer = json_of(capsys, ["doctor", "--checkpoint", str(tmp_path), "--json"], code=1)
    assert answer["usable"] is False
    about_it = [f for f in answer["findings"] if f["section"] == "checkpoint"]
    [problem] = [f for f in about_it if f["level"] == "problem"]
    assert "gpt2" in problem["reason"]


def test_doctor_works_without_torch_and_says_what_is_missing() -> None:
    result = run_without(["torch"], ["doctor", "--json"])
    assert result.returncode == 1, result.stderr
    problems = [f for f in json.loads(result.stdout)["findings"] if f["level"] == "problem"]
    assert any("torch" in f["reason"] for f in problems), problems


def profile(path: Path, size: int) -> dict[str, str]:
    path.write_text(f'<dds xmlns="http://x"><a><segment_size>{size}</segment_size></a></dds>')
    return {"FASTRTPS_DEFAULT_PROFILES_FILE": str(path)}


def test_a_shared_memory_segment_that_loses_frames_is_noticed(tmp_path) -> None:
    enough = NEEDED_FRAMES * VGA_FRAME_BYTES
    assert fast_dds_finding(profile(tmp_path / "a.xml", enough)).level == "ok"
    assert fast_dds_finding(profile(tmp_path / "b.xml", enough - 1)).level == "warn"
    assert fast_dds_finding({}).level == "warn"
    absent = {"FASTDDS_DEFAULT_PROFILES_FILE": str(tmp_path / "absent.xml")}
    assert fast_dds_finding(absent).level == "problem"
    assert fast_dds_finding({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}).level == "ok"


def test_the_shipped_profile_is_large_enough() -> None:
    path = ROOT / "config" / "fastdds_images.xml"
    assert fast_dds_finding({"FASTRTPS_DEFAULT_PROFILES_FILE": str(path)}).level == "ok"


def test_numbers_that_json_lacks_become_null(capsys) -> None:
    print_json(
        {"a": np.array([1.5, np.nan]), "b": np.float32(2), "c": (np.int64(3),), "d": Path("x")}
    )
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None], "b": 2.0, "c": [3], "d": "x"}
