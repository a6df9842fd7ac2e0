"""Replay end to end: numbers, resuming, what is left out, and never half a result."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replay_cases import (
    ACTION,
    BlindPolicy,
    PixelPolicy,
    made_up_episodes,
    noise_images,
    pixel_variant,
    require_equal_records,
    shared_checkpoint,
    with_images,
    without_report,
)

from openvla_ros.config import NodeConfig
from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError, DependencyError, InstructionError
from openvla_ros.evaluation.episode_record import read_record
from openvla_ros.evaluation.replay import folder as replay_folder
from openvla_ros.evaluation.replay.run import ReplayOptions, replay
from openvla_ros.evaluation.replay.variants import MadeVariant, Variant
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.types import ActionSpec

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ReplayOptions(bag=False, probes=False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, request) -> None:
    if "slow" not in request.keywords:
        without_report(monkeypatch)


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def counting(calls: list[str]) -> MadeVariant:
    """A variant whose policy notes the instruction of every prediction."""

    class Counting(PixelPolicy):
        def predict(self, observation):
            calls.append(observation.instruction)
            return super().predict(observation)

    return MadeVariant("base", make=Counting)


def broken_at(step: int) -> Callable[[], Any]:
    def images():
        yield from noise_images(1, step, 32)
        raise ConfigurationError("message 7 of the bag cannot be decoded.")

    return images


def test_every_frame_is_answered_once_and_the_figures_are_those_of_the_answers(
    tmp_path: Path,
) -> None:
    episodes, calls = made_up_episodes(3, steps=4), []
    out = replay(episodes, [counting(calls)], tmp_path / "out", PLAIN)
    assert calls == [e.instruction for e in episodes for _ in range(4)]
    metrics = metrics_of(out)
    assert metrics["complete"] is True and metrics["problems"] == []
    assert metrics["sources"] == [{"path": "made up", "episodes": 3, "steps": 12}]
    assert metrics["variants"]["base"]["policy"]["checkpoint"] == "mock"
    expected = []
    for index, episode in enumerate(episodes):
        for step, image in enumerate(noise_images(index, 4, 32)):
            answer = image.mean(axis=(0, 1)) / 255.0 - 0.5
            expected.append(np.linalg.norm(answer - episode.actions[step, :3]) * 1e3)
    error = metrics["variants"]["base"]["metrics"]["translation_error"]
    assert error["mean"] == pytest.approx(np.mean(expected), rel=1e-12)
    with (out / "steps.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert {p.name for p in out.iterdir()} == {
        ".lock", "replay.json", "records", "policies", "metrics.json", "steps.csv", "report.html",
    }  # fmt: skip


def test_variants_are_loaded_one_after_the_other_and_compared(tmp_path: Path) -> None:
    alive: list[str] = []

    def load(name: str) -> Callable[[], MockPolicy]:
        class Single(PixelPolicy):
            def __init__(self) -> None:
                super().__init__()
                assert not alive, f"{alive} are still in memory"
                alive.append(name)

            def __del__(self) -> None:
                alive.remove(name)

        return Single

    variants = [MadeVariant(name, make=load(name)) for name in ("base", "other")]
    out = replay(made_up_episodes(6), variants, tmp_path / "out", PLAIN)
    metrics = metrics_of(out)
    assert list(metrics["variants"]) == ["base", "other"] and not alive
    rows = {row["metric"]: row for row in metrics["comparisons"]}
    assert rows["translation_error"]["difference"] == 0.0
    assert rows["token_agreement"]["variant_value"] == 1.0


def test_a_blind_policy_is_reported_and_evaluated_all_the_same(tmp_path: Path) -> None:
    told: list[str] = []
    options = replace(PLAIN, tell=told.append)
    variants = [pixel_variant(), MadeVariant("blind", make=BlindPolicy)]
    metrics = metrics_of(replay(made_up_episodes(2), variants, tmp_path / "out", options))
    (finding,) = [f for f in metrics["findings"] if f["level"] == "problem"]
    assert (finding["section"], finding["item"]) == ("blind: policy", "blind")
    assert metrics["variants"]["blind"]["steps"] == 8
    assert any("blind fails its self test" in text for text in told)


def test_an_interrupted_run_goes_on_after_its_records(tmp_path: Path) -> None:
    episodes, calls = made_up_episodes(4), []

    class Interrupted(PixelPolicy):
        def predict(self, observation):
            calls.append(observation.instruction)
            if len(calls) == 10:
                raise KeyboardInterrupt
            return super().predict(observation)

    variant = MadeVariant("base", make=Interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay(episodes, [variant], tmp_path / "out", PLAIN)
    assert not (tmp_path / "out" / "metrics.json").exists()
    done: list[tuple[int, int]] = []
    options = replace(PLAIN, on_steps=lambda _name, steps, total: done.append((steps, total)))
    replay(episodes, [variant], tmp_path / "out", options)
    assert calls[10:] == [e.instruction for e in episodes[2:] for _ in range(4)]
    assert done[0] == (0, 8) and done[-1] == (8, 8)
    replay(episodes, [pixel_variant()], tmp_path / "whole", PLAIN)
    assert require_equal_records(tmp_path / "out", tmp_path / "whole") == 4


def test_a_finished_run_makes_its_results_again_without_the_policy(tmp_path: Path) -> None:
    episodes, calls = made_up_episodes(2), []
    options = replace(PLAIN, probes=True)
    variant = counting(calls)
    first = metrics_of(replay(episodes, [variant], tmp_path / "out", options))
    count = len(calls)
    (tmp_path / "out" / "metrics.json").unlink()
    again = metrics_of(replay(episodes, [variant], tmp_path / "out", options))
    assert len(calls) == count
    assert first | {"created": ""} == again | {"created": ""}


def test_a_damaged_record_is_evaluated_again_with_a_warning(tmp_path: Path) -> None:
    episodes, calls, told = made_up_episodes(3), [], []
    variant = counting(calls)
    out = replay(episodes, [variant], tmp_path / "out", PLAIN)
    path = out / "records" / "base" / "0000_episode_000001.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    calls.clear()
    replay(episodes, [variant], out, replace(PLAIN, tell=told.append))
    assert calls == [episodes[1].instruction] * 4
    assert len(told) == 1 and "0000_episode_000001.npz is not a record" in told[0]
    assert len(read_record(path)) == 4


def test_another_evaluation_in_the_same_folder_needs_restart(tmp_path: Path) -> None:
    out = replay(made_up_episodes(2), [pixel_variant()], tmp_path / "out", PLAIN)
    others = made_up_episodes(3)
    with pytest.raises(ConfigurationError, match=r"its sources differ.*--restart.*another --out"):
        replay(others, [pixel_variant()], out, PLAIN)
    assert (out / "metrics.json").exists()
    replay(others, [pixel_variant()], out, replace(PLAIN, restart=True))
    assert metrics_of(out)["variants"]["base"]["episodes"] == 3


def test_a_broken_episode_ends_the_run_with_the_readers_error(tmp_path: Path) -> None:
    episodes = made_up_episodes(3)
    episodes[1] = with_images(episodes[1], broken_at(2))
    with pytest.raises(ConfigurationError, match="message 7"):
        replay(episodes, [pixel_variant()], tmp_path / "out", PLAIN)
    left = sorted(p.name for p in (tmp_path / "out").rglob("*.*") if p.name != ".lock")
    assert left == ["0000_episode_000000.npz", "base.json", "replay.json"]


def test_with_skip_broken_the_rest_is_evaluated_and_called_incomplete(tmp_path: Path) -> None:
    episodes = made_up_episodes(4)
    episodes[1] = with_images(episodes[1], broken_at(2))
    episodes[2] = replace(episodes[2], instruction="")
    told: list[str] = []
    options = replace(PLAIN, skip_broken=True, tell=told.append)
    metrics = metrics_of(replay(episodes, [pixel_variant()], tmp_path / "out", options))
    assert metrics["complete"] is False
    assert [p.split(":")[0] for p in metrics["problems"]] == [
        "made up, episode_000001",
        "made up, episode_000002 has no instruction, and a policy needs one. Name the topic that "
        "holds it, or the task itself, in the --topics file.",
    ]
    assert metrics["variants"]["base"]["episodes"] == 2
    assert metrics["sources"][0]["episodes"] == 2 and len(told) == 2


def test_an_episode_that_one_variant_cannot_have_is_left_out_of_all(tmp_path: Path) -> None:
    episodes = made_up_episodes(3)

    class Picky(PixelPolicy):
        def predict(self, observation):
            if observation.instruction == episodes[1].instruction:
                raise InstructionError("this policy does not know cups")
            return super().predict(observation)

    variants = [pixel_variant(), MadeVariant("picky", make=Picky)]
    options = replace(PLAIN, skip_broken=True, tell=lambda text: None)
    out = replay(episodes, variants, tmp_path / "out", options)
    metrics = metrics_of(out)
    assert {name: v["episodes"] for name, v in metrics["variants"].items()} == {
        "base": 2, "picky": 2,
    }  # fmt: skip
    assert len(list((out / "records" / "base").iterdir())) == 2  # the report reads them all


def test_nothing_but_broken_episodes_is_an_error(tmp_path: Path) -> None:
    episodes = [with_images(e, broken_at(0)) for e in made_up_episodes(2)]
    with pytest.raises(ConfigurationError, match=r"No episode could be evaluated.*message 7"):
        replay(episodes, [pixel_variant()], tmp_path / "out", replace(PLAIN, skip_broken=True))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_what_the_policy_raises_is_no_fault_of_the_episode(tmp_path: Path) -> None:
    variant = MadeVariant("base", make=lambda: MockPolicy(ACTION, fault="oom"))
    with pytest.raises(MemoryError):
        replay(made_up_episodes(2), [variant], tmp_path / "out", replace(PLAIN, skip_broken=True))


def test_a_source_that_cannot_be_opened_is_skipped_only_on_request(tmp_path: Path) -> None:
    """No policy is loaded before every source is known to be one."""
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n and nothing more")
    (good,) = made_up_episodes(1)
    loads: list[int] = []
    variant = MadeVariant("base", make=lambda: loads.append(1) or PixelPolicy())
    with pytest.raises(ConfigurationError, match=r"broken\.mcap"):
        replay([broken, good], [variant], tmp_path / "out", PLAIN)
    assert not loads
    options = replace(PLAIN, skip_broken=True, tell=lambda text: None)
    metrics = metrics_of(replay([broken, good], [variant], tmp_path / "out", options))
    assert metrics["complete"] is False and "broken.mcap" in metrics["problems"][0]
    with pytest.raises(ConfigurationError, match="no episode to replay"):
        replay([broken], [variant], tmp_path / "other", options)


def test_episodes_are_counted_over_all_sources(tmp_path: Path) -> None:
    episodes = [*made_up_episodes(2, source="a"), *made_up_episodes(2, source="b")]
    out = replay(episodes, [pixel_variant()], tmp_path / "out", replace(PLAIN, max_episodes=3))
    assert sorted(p.stem for p in (out / "records" / "base").iterdir()) == [
        "0000_episode_000000", "0000_episode_000001", "0001_episode_000000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "nothing to replay"),
        ([*made_up_episodes(1), *made_up_episodes(1)], "'episode_000000', which is taken"),
        ([replace(made_up_episodes(1)[0], name="../../up")], "without '/'"),
    ],
)
def test_sources_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, sources: Sequence[Episode], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        replay(sources, [pixel_variant()], tmp_path / "out", PLAIN)


def test_a_full_disk_at_any_write_leaves_no_results_and_is_gone_on_from(
    tmp_path: Path, monkeypatch
) -> None:
    episodes, out = made_up_episodes(2, steps=1), tmp_path / "out"
    real, writes = replay_folder.os.fsync, []

    def filling_up(handle: int) -> None:
        writes.append(handle)
        if len(writes) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(replay_folder.os, "fsync", filling_up)  # the module of episode_record, too
    for succeeding in range(20):
        room = succeeding
        writes.clear()
        try:
            replay(episodes, [pixel_variant()], out, replace(PLAIN, restart=True))
        except ConfigurationError as error:
            assert "No space left" in str(error) and "same command again" in str(error)
            assert not (out / "metrics.json").exists() and not (out / "report.html").exists()
        else:
            break
    assert room == 6  # plan, policy, two records, steps, metrics
    assert metrics_of(out)["complete"] is True
    room = 3
    writes.clear()
    with pytest.raises(ConfigurationError):
        replay(episodes, [pixel_variant()], out, replace(PLAIN, restart=True))
    monkeypatch.setattr(replay_folder.os, "fsync", real)
    replay(episodes, [pixel_variant()], out, PLAIN)
    replay(episodes, [pixel_variant()], tmp_path / "whole", PLAIN)
    assert require_equal_records(out, tmp_path / "whole") == 2


def test_a_missing_library_is_noticed_before_hours_of_work(tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(DependencyError, match="matplotlib"):
        replay(made_up_episodes(1), [counting(calls)], tmp_path / "out", PLAIN)
    assert not calls and not (tmp_path / "out").exists()


def test_what_an_own_statistics_key_means_comes_from_the_nodes_parameters(tmp_path: Path) -> None:
    node = NodeConfig.from_values({"action_spec.translation_unit_m": 0.5})
    plain = metrics_of(replay(made_up_episodes(2), [pixel_variant()], tmp_path / "a", PLAIN))
    told = replay(made_up_episodes(2), [pixel_variant()], tmp_path / "b", replace(PLAIN, node=node))
    halved = metrics_of(told)
    assert halved["action_spec"]["translation_unit_m"] == 0.5
    means = [m["variants"]["base"]["metrics"]["translation_error"]["mean"] for m in (plain, halved)]
    assert means[1] == pytest.approx(means[0] / 2)


def test_every_length_in_the_file_has_the_unit_that_the_file_names(tmp_path: Path) -> None:
    """A variant whose key nobody has described gave metres, and the report called them mm."""

    class Undescribed(PixelPolicy):
        @property
        def action_spec(self) -> ActionSpec:
            return replace(super().action_spec, translation_unit_m=None, rotation_unit_rad=None)

    variants = [pixel_variant(), MadeVariant("tuned", make=Undescribed)]
    metrics = metrics_of(replay(made_up_episodes(2), variants, tmp_path / "out", PLAIN))
    assert metrics["units"] == {"translation": "mm", "rotation": "deg"}
    base, tuned = (metrics["variants"][name]["metrics"] for name in ("base", "tuned"))
    for figure in ("translation_error", "rotation_error", "clip_rate"):
        assert tuned[figure] == base[figure], figure


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'spark' is unknown; use one of local, ray"):
        ReplayOptions(engine="spark")


def sample_bag() -> Path:
    data = shared_data_folder()
    if data is None or not (data / "bridge_rosbag2_mcap").is_dir():
        pytest.skip("no recorded bag on this machine")
    return data / "bridge_rosbag2_mcap"


def sample_options(**changes: Any) -> ReplayOptions:
    from openvla_ros.data.topics import read_topic_file

    topics = read_topic_file(ROOT / "config" / "topics" / "bridge_sample.yaml")
    return ReplayOptions(topics=topics, **changes)


def test_a_real_bag_is_answered_as_the_policy_answers_its_pixels(tmp_path: Path) -> None:
    """The frames are read from the bag with rosbags and Pillow alone."""
    bag, options = sample_bag(), sample_options(max_episodes=1, probes=False)
    variant = Variant("base", shared_checkpoint(), device="cpu")
    out = replay([bag], [variant], tmp_path / "out", options)
    record = read_record(out / "records" / "base" / "0000_episode_000000.npz")
    frames = frames_of(bag)
    policy = OpenVLAPolicy.from_pretrained(variant.checkpoint, device="cpu")
    assert len(record) == 10
    for step in (0, 4, 9):
        expected = policy.predict_action(frames[int(record.stamps_ns[step])], record.instruction)
        assert record.token_ids[step].tolist() == expected.token_ids
        np.testing.assert_array_equal(record.predicted[step], expected.action)
    assert (out / "replay_bag" / "metadata.yaml").exists()
    assert metrics_of(out)["units"] == {"translation": "mm", "rotation": "deg"}


def test_each_of_several_sources_gets_a_bag_with_the_answers(tmp_path: Path) -> None:
    episodes = [made_up_episodes(1, source=source)[0] for source in ("tuesday", "monday")]
    options = ReplayOptions(probes=False)
    out = replay(episodes, [pixel_variant()], tmp_path / "out", options)
    bags = sorted(path.name for path in (out / "replay_bag").iterdir())
    assert bags == ["0000_tuesday", "0001_monday"]


@pytest.mark.slow
def test_bags_of_one_time_get_a_replay_bag_each(tmp_path: Path) -> None:
    """Two bags that overlap in time, or come in another order, ended the run once every frame was
    answered: their answers do not fit into one bag.
    """
    first = sample_bag()
    second = first.parent / "bridge_v2_frames100_rosbag2_mcap"
    options = sample_options(probes=False)
    out = replay([second, first], [pixel_variant()], tmp_path / "out", options)
    assert metrics_of(out)["complete"] and (out / "report.html").exists()
    bags = sorted(path.name for path in (out / "replay_bag").iterdir())
    assert bags == [f"0000_{second.name}", f"0001_{first.name}"]


@pytest.mark.slow
def test_everything_is_written_for_a_real_bag(tmp_path: Path) -> None:
    """Two variants, probes, bag and the real report."""
    base = Variant("base", shared_checkpoint(), device="cpu")
    variants = [base, replace(base, name="crop", center_crop=True)]
    out = replay([sample_bag()], variants, tmp_path / "out", sample_options(max_episodes=2))
    metrics, report = metrics_of(out), (out / "report.html").read_text(encoding="utf-8")
    assert metrics["complete"] is True and len(metrics["comparisons"]) == 9
    sights = [f["section"] for f in metrics["findings"] if f["item"] == "sight"]
    assert sights == ["pipeline", "crop: pipeline"]
    assert "crop" in report and "episode_000001" in report
    with (out / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["base"] * 20 + ["crop"] * 20
    record = read_record(out / "records" / "crop" / "0000_episode_000001.npz")
    written = [float(row["predicted_yaw"]) for row in rows[30:]]
    assert written == record.predicted[:, 5].tolist()


def frames_of(bag: Path) -> dict[int, np.ndarray]:
    """Stamp in nanoseconds to the picture of a bag's only camera."""
    import io

    from PIL import Image
    from rosbags.highlevel import AnyReader

    frames = {}
    with AnyReader([bag]) as reader:
        cameras = [c for c in reader.connections if c.msgtype.endswith("CompressedImage")]
        raw = [c for c in reader.connections if c.msgtype.endswith("msg/Image")]
        for connection, _, data in reader.messages(cameras or raw):
            message = reader.deserialize(data, connection.msgtype)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if cameras:
                picture = Image.open(io.BytesIO(message.data.tobytes())).convert("RGB")
                frames[stamp] = np.asarray(picture)
            else:
                assert message.encoding == "rgb8"
                frames[stamp] = message.data.reshape(message.height, message.width, 3)
    return frames
