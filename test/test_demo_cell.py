"""The pieces of a demo in the simulated cell: scene, pace, film and page. No DDS."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import sim_cells
from PIL import Image
from test_demo import Recording

from openvla_ros.config import NodeConfig
from openvla_ros.data.bag_file import COMPRESSED_IMAGE
from openvla_ros.errors import ConfigurationError, DependencyError, InstructionError
from openvla_ros.ros.demo_episode import VIEW_TOPIC, Episode, Track, read_tracks
from openvla_ros.ros.demo_film import FilmFrame, film_frames, write_gif, write_mp4
from openvla_ros.ros.demo_options import DemoOptions
from openvla_ros.ros.demo_pace import PROMPT_S, RATE_HZ, choose_pace
from openvla_ros.ros.demo_page import DemoFacts, demo_page
from openvla_ros.sim.scene import COLOURS
from openvla_ros.sim.tasks import read_task

SECOND = 1_000_000_000


def episode(text: str = "reach the red block", done_s: float | None = 1.5) -> Episode:
    task = read_task(text, COLOURS)
    return Episode(text, task, SECOND, 3 * SECOND, 4 * SECOND, 4.0, done_s)


def jpeg(shade: int, size: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 80, 160)).save(file, "JPEG")
    return file.getvalue()


def track(text: str = "reach the red block", done_s: float | None = 1.5) -> Track:
    return Track(
        episode(text, done_s),
        views=[(0.2 * n, jpeg(20 * n)) for n in range(11)],
        times_s=[0.0, 1.0, 2.0],
        positions=[np.array(p) for p in ([0.3, 0.0, 0.2], [0.3, 0.03, 0.2], [0.3, 0.03, 0.17])],
        latencies_s=[0.1, 0.2, 0.3],
        model_ms=[80.0, 90.0, 100.0],
        executed=3,
    )  # fmt: skip


# --- pace


def test_a_machine_in_real_time_gets_the_recordings_rate() -> None:
    pace = choose_pace(0.08, 0.97)
    assert pace.parameters["policy_rate"] == RATE_HZ
    assert pace.parameters["linear_scale"] == pace.step_share == 1.0
    assert pace.parameters["twist_mode"] == "stretch"


@pytest.mark.parametrize("factor", [0.8, 0.5, 0.25, 0.05])
def test_the_arm_moves_as_fast_in_simulated_time_however_slow_the_cell_is(factor: float) -> None:
    """A twist lasts by the machine's clock: in a slow cell an action moved the arm too little."""
    pace = choose_pace(0.01, factor)
    per_action = pace.parameters["linear_scale"] * factor  # of its displacement
    assert per_action * pace.parameters["policy_rate"] / factor == pytest.approx(RATE_HZ)
    assert pace.step_share == pytest.approx(per_action)
    NodeConfig.from_values(pace.parameters)


def test_a_slow_policy_looks_again_after_every_action() -> None:
    pace = choose_pace(1.0, 1.0)
    assert pace.parameters["twist_mode"] == "exact"
    assert 1.0 / pace.parameters["policy_rate"] > 1.0 + 1.0 / RATE_HZ
    assert choose_pace(0.9 * PROMPT_S, 1.0).parameters["twist_mode"] == "stretch"
    assert choose_pace(2.0 * PROMPT_S, 0.4).parameters["twist_mode"] == "stretch", "simulated time"
    NodeConfig.from_values(choose_pace(60.0, 0.01).parameters)


# --- scene


def scene(**options: object):
    pytest.importorskip("rclpy", reason="needs ROS; run `make setup`")
    from openvla_ros.ros.demo_cell import CellScene

    return CellScene(DemoOptions(**options))


@pytest.mark.ros
def test_three_colours_are_asked_for_in_one_scene() -> None:
    sim_cells.require_cell()
    made = scene()
    tasks = [read_task(text, COLOURS) for text in made.instructions]
    assert len({task.target for task in tasks}) == 3
    assert {task.kind for task in tasks} == {"reach"}
    assert all(task.target in made.description for task in tasks)


@pytest.mark.ros
def test_a_scene_with_the_named_block_is_looked_for() -> None:
    sim_cells.require_cell()
    for colour in COLOURS:
        made = scene(instruction=f"pick up the {colour} block", seed=0)
        assert made.instructions == (f"pick up the {colour} block",)
        assert colour in made.description
    assert scene(instruction="do something else", seed=5).seed == 5
    assert len(scene(instruction=" ").instructions) == 3
    with pytest.raises(InstructionError):
        scene(instruction="two\nlines")


@pytest.mark.ros
def test_an_arm_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sim_cells.require_cell()
    with pytest.raises(ConfigurationError, match="viperx"):
        scene(robot="widowx")
    monkeypatch.setitem(sys.modules, "robosuite", None)
    monkeypatch.setattr("openvla_ros.sim.assets._folder", lambda *_: None)
    with pytest.raises(DependencyError, match=r"robosuite==1\.5\.2"):
        scene(robot="panda")


# --- outcome, film, page


def test_an_outcome_is_said_in_words() -> None:
    assert episode().outcome == "done after 1.5 s"
    assert episode(done_s=None).outcome == "missed in 2.0 s"
    assert episode("wave", None).outcome == "not judged"
    assert episode().real_time_factor == pytest.approx(0.5)


def test_an_episode_is_cut_out_of_the_bag(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "bag", {VIEW_TOPIC: COMPRESSED_IMAGE})
    for second in range(6):
        recording.clock = second * SECOND
        recording.add(VIEW_TOPIC, data=np.frombuffer(jpeg(10 * second), np.uint8))
        point = recording._fill("geometry_msgs/msg/Point", {"x": 0.01 * second})
        recording.add(
            "/ee_pose", pose=recording._fill("geometry_msgs/msg/Pose", {"position": point})
        )
        end = recording._fill("builtin_interfaces/msg/Time", {"sec": second})
        recording.add("/action", inference_end=end, executed=True, inference_ms=7.0)
    recording.bag.close()
    [found] = read_tracks(tmp_path / "bag", [episode()])
    assert [round(time_s) for time_s, _ in found.views] == [0, 1, 2]
    assert found.path_m == pytest.approx(0.02)
    assert found.executed == 2, "answers after the stop do not count"
    assert found.model_ms == [7.0, 7.0]


def test_a_film_says_what_is_asked_and_how_it_ended(tmp_path: Path) -> None:
    frames = film_frames([track(), track("go to the blue block", None)])
    assert len(frames) == 22
    assert sum(frame.duration_s for frame in frames) == pytest.approx(2 * (2.0 + 1.2))
    done, missed = (np.asarray(frames[n].picture)[64:] for n in (10, 21))
    assert not np.array_equal(done, missed)
    write_gif(frames, tmp_path / "demo.gif")
    with Image.open(tmp_path / "demo.gif") as film:
        assert film.is_animated
        total_ms = 0
        for number in range(film.n_frames):
            film.seek(number)
            total_ms += film.info["duration"]
        assert total_ms == pytest.approx(6400, abs=100)


def test_a_gif_that_is_too_large_is_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 96, 96, 3), dtype=np.uint8)
    frames = [FilmFrame(Image.fromarray(picture), 0.2) for picture in noise]
    write_gif(frames, tmp_path / "whole.gif")
    most = (tmp_path / "whole.gif").stat().st_size // 2 + 1000
    write_gif(frames, tmp_path / "small.gif", most)
    assert (tmp_path / "small.gif").stat().st_size <= most


def test_a_film_for_browsers_is_as_long_as_the_gif(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    assert write_mp4(film_frames([track()]), tmp_path / "demo.mp4") == ""
    with av.open(str(tmp_path / "demo.mp4")) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        assert film.duration / av.time_base == pytest.approx(3.2, abs=0.1)


def test_the_page_says_everything_and_reaches_for_nothing() -> None:
    pytest.importorskip("matplotlib")
    facts = DemoFacts("Demo", "careful", {"Policy": "tiny"}, {"red": np.array([0.3, 0.1, 0.02])})
    page = demo_page(facts, [track(), track("go to the <b>blue</b> block", None)])
    for words in ("done after 1.5 s", "not judged", "careful", "200", "90", "0.50", "6.0"):
        assert words in page, words
    assert page.count("data:image/jpeg;base64,") == 12
    assert page.count("<svg") == 2
    assert "<b>blue" not in page, "what people wrote is shown, never obeyed"
    assert "http://" not in page and "https://" not in page


def test_a_demo_without_pictures_still_has_a_page() -> None:
    empty = Track(episode(done_s=None))
    page = demo_page(DemoFacts("Demo", "", {}, {}), [empty])
    assert "missed" in page and "n/a" in page
    assert math.isclose(empty.path_m, 0.0)
