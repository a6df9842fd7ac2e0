"""The simulated cell: follows twists, repeats itself, shows what there is, and the expert works."""

from __future__ import annotations

import numpy as np
import pytest
import sim_cells
from sim_cells import run_expert, shared_cell

from openvla_ros.control.pose import Pose
from openvla_ros.errors import ConfigurationError, DependencyError, MotionError
from openvla_ros.sim import assets, cell_model, rendering
from openvla_ros.sim.arms import TOOL_DOWN
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import MAX_STEP_M, MAX_STEP_RAD, action_twist
from openvla_ros.sim.inverse_kinematics import is_small, pose_error
from openvla_ros.sim.scene import BLOCK_SIZE_M, COLOURS, SceneRanges, draw_scene
from openvla_ros.sim.states import sample_state
from openvla_ros.sim.tasks import DIRECTIONS, KINDS, phrases, read_task

SIZE = 96


@pytest.fixture
def cell() -> SimCell:
    sim_cells.require_cell()
    return shared_cell()


@pytest.fixture(params=["viperx", "panda"])
def any_cell(request: pytest.FixtureRequest) -> SimCell:
    sim_cells.require_cell(request.param)
    return shared_cell(request.param)


@pytest.fixture
def seeing_cell() -> SimCell:
    sim_cells.require_pictures()
    return shared_cell()


def test_the_tool_goes_as_far_as_the_twist_says(any_cell: SimCell) -> None:
    any_cell.reset(0)
    assert any_cell.put_tool(Pose(np.array([0.30, -0.05, 0.18]), TOOL_DOWN))
    for twist in np.diag([0.05, 0.05, -0.05, 0.2, 0.2, 0.2]):
        before = any_cell.ee_pose()
        any_cell.step(twist, 1.0, 1.0)
        any_cell.step(np.zeros(6), 1.0, 0.3)
        moved = pose_error(before, any_cell.ee_pose())
        off = np.abs(moved - twist)
        assert off[:3].max() < 0.002 and off[3:].max() < 0.01, f"asked {twist}, went {moved}"


def test_the_arm_stands_still_without_a_twist(any_cell: SimCell) -> None:
    any_cell.reset(1)
    before = any_cell.ee_pose()
    any_cell.step(np.zeros(6), 1.0, 2.0)
    moved = np.abs(pose_error(before, any_cell.ee_pose())).max()
    assert moved < 0.001, f"{moved} m or rad in 2 s"


def test_what_cannot_be_reached_is_not_stored(cell: SimCell) -> None:
    """Once it is told to come back, it comes at once."""
    cell.reset(2)
    before = cell.ee_pose()
    up = np.array([0.0, 0.0, 0.3, 0.0, 0.0, 0.0])
    cell.step(up, 1.0, 5.0)
    highest = cell.ee_pose().position[2]
    cell.step(-up, 1.0, 0.4)
    down = highest - cell.ee_pose().position[2]
    assert down > 0.05, f"after 0.4 s at 0.3 m/s down it is {down:.3f} m lower"
    leaning = np.linalg.norm(pose_error(before, cell.ee_pose())[3:])
    assert leaning < 0.3, f"the gripper has turned by {leaning:.2f} rad on a straight way"


def test_joints_stay_within_their_limits(any_cell: SimCell) -> None:
    any_cell.reset(3)
    for twist in ([0.3, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, -0.3, 0, 1, 0]):
        any_cell.step(np.array(twist, float), 0.0, 3.0)
        joints = any_cell.joint_positions()
        lower, upper = any_cell.kinematics.lower_rad, any_cell.kinematics.upper_rad
        assert (joints > lower - 0.05).all() and (joints < upper + 0.05).all(), joints


def test_the_gripper_opens_and_closes(any_cell: SimCell) -> None:
    any_cell.reset(4)
    for wanted in (0.0, 1.0, 0.5):
        any_cell.step(np.zeros(6), wanted, 1.0)
        assert any_cell.opening() == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("twist", [np.zeros(5), np.full(6, np.nan)])
def test_a_twist_that_is_none_is_refused(cell: SimCell, twist: np.ndarray) -> None:
    cell.reset(0)
    with pytest.raises(MotionError, match="twist"):
        cell.step(twist, 1.0, 0.1)


def test_inverse_kinematics_finds_the_poses_of_the_table(any_cell: SimCell) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        position = generator.uniform([0.2, -0.22, 0.02], [0.46, 0.22, 0.24])
        target = Pose(position, TOOL_DOWN)
        joints = any_cell.kinematics.solve(target, np.array(any_cell.arm.home_rad))
        assert joints is not None, f"no joint positions for {position}"
        assert is_small(pose_error(any_cell.kinematics.pose(joints), target))


def test_the_same_seed_does_the_same_again(seeing_cell: SimCell) -> None:
    runs = []
    for _ in range(2):
        task = seeing_cell.reset(7, "pick")
        run_expert(seeing_cell)
        picture = seeing_cell.render(SIZE, SIZE)
        runs.append((task, seeing_cell.data.qpos.copy(), seeing_cell.time_ns, picture))
        seeing_cell.reset(8)
        seeing_cell.step(np.ones(6) * 0.05, 0.3, 0.5)
    assert runs[0][0] == runs[1][0] and runs[0][2] == runs[1][2]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    np.testing.assert_array_equal(runs[0][3], runs[1][3])


def test_a_scene_stays_when_the_instruction_changes(cell: SimCell) -> None:
    cell.reset(5)
    scene = cell.scene
    for block in scene.blocks:
        task = cell.reset(5, "reach", target=block.colour)
        assert cell.scene == scene
        assert block.colour in task.instruction
    cell.reset(5, "pick")
    assert cell.scene == scene


def test_every_wording_names_its_block(cell: SimCell) -> None:
    for kind in KINDS:
        wordings = {cell.reset(0, kind, wording=number).instruction for number in range(10)}
        assert wordings == set(phrases(kind, cell.task.target, cell.task.direction))
        assert all(cell.task.target in wording for wording in wordings)


@pytest.mark.parametrize("kind", KINDS)
def test_an_instruction_is_read_back_as_the_task_it_was_made_from(kind: str) -> None:
    for colour in COLOURS:
        for direction in DIRECTIONS if kind == "push" else ("",):
            for words in phrases(kind, colour, direction):
                task = read_task(words, COLOURS)
                assert task is not None, words
                assert (task.kind, task.target, task.direction) == (kind, colour, direction)


def test_an_instruction_in_other_words_is_no_task() -> None:
    said = "Reach the  RED block."
    task = read_task(said, COLOURS)
    assert task is not None and (task.target, task.instruction) == ("red", said)
    assert read_task("reach the red block", ["blue"]) is None, "there is no such block"
    assert read_task("tidy up", COLOURS) is None


def test_the_target_is_the_nearest_block_in_at_most_a_third_of_the_scenes(cell: SimCell) -> None:
    for kind in KINDS:
        seeds = range(200)
        nearest = sum(cell.reset(seed, kind).target == cell.state().nearest() for seed in seeds)
        assert nearest / len(seeds) <= 1 / 3, f"{kind}: {nearest} of {len(seeds)}"


def test_nothing_overlaps_and_all_blocks_are_seen(seeing_cell: SimCell) -> None:
    for seed in range(20):
        seeing_cell.reset(seed, "place" if seed % 2 else "reach")
        state = seeing_cell.state()
        places = [block[:2] for block in state.blocks.values()]
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[i + 1 :]]
        assert min(gaps) >= seeing_cell.ranges.block_gap_m
        seen = seeing_cell.seen_pixels(SIZE, SIZE)
        assert min(seen.values()) >= 20, f"seed {seed}: pixels of {SIZE} x {SIZE}: {seen}"


def test_a_block_has_the_colour_of_its_name(seeing_cell: SimCell) -> None:
    """Of all names, the one it has is the nearest to the pixels that show it, in any light."""
    wrong = []
    for seed in range(20):
        seeing_cell.reset(seed)
        picture = seeing_cell.render(SIZE, SIZE).astype(float)
        for number, block in enumerate(seeing_cell.scene.blocks):
            geoms = seeing_cell.seen_geoms(SIZE, SIZE)
            shown = picture[geoms == seeing_cell.block_geom(number)].mean(axis=0)
            named = {name: np.array(rgb) for name, rgb in COLOURS.items()}
            off = {
                name: float(
                    np.linalg.norm(shown / np.linalg.norm(shown) - rgb / np.linalg.norm(rgb))
                )
                for name, rgb in named.items()
            }
            if min(off, key=off.get) != block.colour:
                wrong.append((seed, block.colour, off))
    assert not wrong, wrong


def test_pictures_differ_between_seeds_and_have_the_size_asked_for(seeing_cell: SimCell) -> None:
    pictures = []
    for seed in range(3):
        seeing_cell.reset(seed)
        picture = seeing_cell.render(128, 64)
        assert picture.shape == (64, 128, 3) and picture.dtype == np.uint8
        pictures.append(picture.astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() > 5.0
    assert np.abs(pictures[1] - pictures[2]).mean() > 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_does_its_task(any_cell: SimCell, kind: str) -> None:
    failed = []
    for seed in range(4):
        any_cell.reset(seed, kind)
        # `std_msgs/Bool` sends numpy's True as False.
        assert any_cell.task.is_done(any_cell.state()) is False, "done before it began"
        if run_expert(any_cell) is None:
            failed.append(seed)
        else:
            assert any_cell.task.is_done(any_cell.state()) is True
    assert not failed, f"{kind}: seeds {failed}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_does_at_least_98_of_100(cell: SimCell, kind: str) -> None:
    failed = []
    for seed in range(1000, 1100):
        cell.reset(seed, kind)
        if run_expert(cell) is None:
            failed.append(seed)
    assert len(failed) <= 2, f"{kind}: seeds {failed}"


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_drawn_by_themselves_and_the_expert_knows_what_to_do(
    cell: SimCell, kind: str
) -> None:
    actions = []
    for seed in range(60):
        moment = sample_state(cell, seed, kind)
        again = sample_state(cell, seed, kind)
        np.testing.assert_array_equal(moment.action, again.action)
        assert moment.action.shape == (7,) and np.isfinite(moment.action).all()
        assert np.linalg.norm(moment.action[:3]) <= MAX_STEP_M + 1e-9
        assert np.linalg.norm(action_twist(moment.action, 1.0)[3:]) <= MAX_STEP_RAD + 1e-9
        assert not cell.hidden_blocks()
        actions.append(moment.action)
    assert (np.std(actions, axis=0)[:3] > 0.005).all(), "hardly anything to tell apart"
    if kind in ("pick", "place"):
        assert 0.2 < np.mean(actions, axis=0)[6] < 0.9, "the gripper hardly ever changes"


def test_a_held_block_is_between_the_fingers(cell: SimCell) -> None:
    held = 0
    for seed in range(40):
        moment = sample_state(cell, seed, "pick")
        held += moment.state.is_held(moment.task.target)
    assert 5 <= held <= 30, f"{held} of 40"


def test_wrong_words_are_refused_with_the_known_ones(cell: SimCell) -> None:
    with pytest.raises(ConfigurationError, match="reach, push, pick, place"):
        cell.reset(0, "throw")
    absent = next(colour for colour in COLOURS if colour not in cell.state().blocks)
    with pytest.raises(ConfigurationError, match=absent):
        cell.reset(0, "reach", target=absent)
    with pytest.raises(ConfigurationError, match="viperx"):
        SimCell("ur5")
    with pytest.raises(ConfigurationError, match="blocks"):
        SceneRanges(blocks=9)


def test_blocks_that_do_not_fit_are_said_to() -> None:
    ranges = SceneRanges(block_gap_m=0.5)
    with pytest.raises(ConfigurationError, match="do not fit"):
        draw_scene(np.random.default_rng(0), ranges, has_plate=False)


def test_absent_meshes_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "VIPERX_PACKAGE", "no_such_package_here")
    monkeypatch.setattr(assets, "PANDA_PACKAGE", "no_such_package_here")
    with pytest.raises(DependencyError, match="pip install --no-deps 'gym-aloha"):
        assets.viperx_folder()
    with pytest.raises(DependencyError, match="pip install --no-deps 'robosuite"):
        assets.panda_folder()


def test_a_renderer_that_needs_a_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ConfigurationError, match="osmesa, egl"):
        rendering.open_context()


def test_without_any_opengl_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "BACKENDS", ("no_such_backend",))
    with pytest.raises(DependencyError, match=r"no_such_backend.*libosmesa6"):
        rendering.open_context()


def test_the_camera_pose_projects_blocks_to_where_they_are_seen(seeing_cell: SimCell) -> None:
    for seed in range(5):
        seeing_cell.reset(seed)
        position, rotation = cell_model.camera_pose(seeing_cell.scene)
        focal = cell_model.focal_length_pixels(SIZE)
        geoms = seeing_cell.seen_geoms(SIZE, SIZE)
        for number, block in enumerate(seeing_cell.scene.blocks):
            point = np.array([*block.position_m, BLOCK_SIZE_M / 2])
            x, y, depth = rotation.T @ (point - position)
            expected = np.array([x, y]) / depth * focal + (SIZE - 1) / 2
            rows, columns = np.nonzero(geoms == seeing_cell.block_geom(number))
            off = np.abs(expected - [columns.mean(), rows.mean()]).max()
            assert off < 2.0, f"seed {seed}, {block.colour}: {off:.1f} pixels"
