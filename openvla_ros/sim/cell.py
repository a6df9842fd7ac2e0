"""A table with an arm, coloured blocks and a camera: twist and gripper in, pictures out.

No ROS and no clock of its own: `step` says how long to simulate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from openvla_ros.control.displacement import euler_matrix
from openvla_ros.control.pose import Pose
from openvla_ros.errors import ConfigurationError, DependencyError, MotionError
from openvla_ros.sim import cell_model
from openvla_ros.sim.arms import TOOL_DOWN, TOOL_SITE, arm_model
from openvla_ros.sim.cell_model import CAMERA, PHYSICS_STEP_S, block_name
from openvla_ros.sim.inverse_kinematics import ArmKinematics
from openvla_ros.sim.rendering import SceneRenderer
from openvla_ros.sim.scene import BLOCK_SIZE_M, PLATE_HEIGHT_M, Scene, SceneRanges, draw_scene
from openvla_ros.sim.tasks import CellState, Task, draw_task
from openvla_ros.sim.twist_servo import TwistServo

CONTROL_PERIOD_S = 0.01
SEEN_SHARE = 0.5  # of a block's test points: less, and it counts as hidden by the arm
_TRIES = 200


class SimCell:
    """One cell; the same seed gives the same scene, the same physics and the same pictures.

    Attributes:
        scene: What was drawn at the last reset.
        task: And what is to be done in it.
    """

    scene: Scene
    task: Task

    def __init__(
        self, arm: str = "viperx", ranges: SceneRanges | None = None, *, has_shadows: bool = False
    ) -> None:
        """Compile the model; `reset` before anything else.

        Args:
            arm: A name of `arms.ARMS`.
            ranges: Between which bounds a reset draws.
            has_shadows: Shadows of the lamp: a picture then takes about three times as long.

        Raises:
            ConfigurationError: No arm of that name.
            DependencyError: MuJoCo or the arm's meshes are not installed.
        """
        self._mujoco = _import_mujoco()
        self.arm = arm_model(arm)
        self.ranges = ranges if ranges is not None else SceneRanges()
        self.model = cell_model.build_model(self.arm, self.ranges.blocks)
        self.data = self._mujoco.MjData(self.model)
        self.kinematics = ArmKinematics(self.model, self.arm)
        self._servo = TwistServo(self.kinematics, self.arm)
        self._renderer = SceneRenderer(self.model, has_shadows=has_shadows)
        self._site = self.model.site(TOOL_SITE).id
        joints = [self.model.joint(name) for name in self.arm.joints]
        self._joints = np.array([joint.qposadr[0] for joint in joints])
        fingers = [self.model.joint(finger.joint) for finger in self.arm.fingers]
        self._fingers = np.array([joint.qposadr[0] for joint in fingers])
        self._closed_m = np.array([finger.closed_m for finger in self.arm.fingers])
        self._open_m = np.array([finger.open_m for finger in self.arm.fingers])
        self._camera_id = self.model.camera(CAMERA).id
        self._opening_target = 1.0

    def reset(
        self, seed: int, kind: str = "reach", target: str = "", wording: int | None = None
    ) -> Task:
        """Draw a scene and a task, put everything in place, and return the task.

        Args:
            seed: Decides the scene, and what the other arguments leave open.
            kind: "reach", "push", "pick" or "place". Without "place" the scene has no plate, and
                is the same for every kind.
            target: Colour of the block that the task is about; "" draws one.
            wording: Number of the phrasing; None draws one.

        Raises:
            ConfigurationError: Unknown kind, a negative seed, or no block of that colour here.
        """
        if seed < 0:
            raise ConfigurationError(f"the seed is {seed}; it must be 0 or more.")
        for attempt in range(_TRIES):
            generator = np.random.default_rng([seed, attempt])
            self._place(draw_scene(generator, self.ranges, has_plate=kind == "place"))
            start = Pose(
                np.array(self.scene.tool_m), euler_matrix(np.array(self.scene.tool_rpy)) @ TOOL_DOWN
            )
            if self.put_tool(start) and not self.hidden_blocks():
                self.task = draw_task(
                    np.random.default_rng([seed, _TRIES]), kind, self.state(), target, wording
                )
                return self.task
        raise AssertionError(f"seed {seed}: no scene in which the arm reaches its start")

    def step(self, twist: np.ndarray, opening: float, duration_s: float) -> None:
        """Simulate `duration_s` with a constant twist and gripper command.

        Args:
            twist: (6,) m/s and rad/s of the tool point along base axes.
            opening: 0 closed ... 1 open; values outside are cut.
            duration_s: Rounded to whole control periods of 10 ms.

        Raises:
            MotionError: A number that is not finite, or not six of them.
        """
        twist = np.asarray(twist, float)
        if twist.shape != (6,) or not (np.isfinite(twist).all() and np.isfinite(opening)):
            raise MotionError(f"the cell got twist {twist} and opening {opening}: six finite + one")
        per_period = round(CONTROL_PERIOD_S / PHYSICS_STEP_S)
        slew = CONTROL_PERIOD_S / self.arm.finger_travel_s
        wanted = float(np.clip(opening, 0.0, 1.0))
        joints = len(self._joints)
        for _ in range(round(duration_s / CONTROL_PERIOD_S)):
            self._servo.follow(twist, CONTROL_PERIOD_S, self.joint_positions())
            self._opening_target += float(np.clip(wanted - self._opening_target, -slew, slew))
            self.data.ctrl[:joints] = self._servo.joints_rad
            self.data.ctrl[joints:] = self._finger_positions(self._opening_target)
            self._mujoco.mj_step(self.model, self.data, per_period)
        self._mujoco.mj_kinematics(self.model, self.data)

    def put_tool(self, pose: Pose, opening: float = 1.0) -> bool:
        """Put the arm there at once, without physics; False when it cannot reach that pose."""
        joints = self.kinematics.solve(pose, np.array(self.arm.home_rad))
        if joints is None:
            return False
        self.data.qpos[self._joints] = joints
        self.data.qpos[self._fingers] = self._finger_positions(opening)
        self.data.qvel[:] = 0.0
        self._opening_target = opening
        self._servo.start(joints)
        self.data.ctrl[: len(joints)] = joints
        self.data.ctrl[len(joints) :] = self._finger_positions(opening)
        self._mujoco.mj_kinematics(self.model, self.data)
        return True

    def put_block(self, colour: str, position_m: np.ndarray, rotation: np.ndarray) -> None:
        """Put the centre of a block there at once, without physics."""
        joint = self.data.joint(block_name(self._number(colour)))
        joint.qpos[:3] = position_m
        self._mujoco.mju_mat2Quat(joint.qpos[3:], np.asarray(rotation, float).ravel())
        self._mujoco.mj_kinematics(self.model, self.data)

    def put_back(self, colour: str) -> None:
        """Put a block where the scene has it, without physics."""
        block = self.scene.blocks[self._number(colour)]
        turn = euler_matrix(np.array([0.0, 0.0, block.yaw_rad]))
        self.put_block(colour, np.array([*block.position_m, BLOCK_SIZE_M / 2]), turn)

    def render(self, width: int, height: int) -> np.ndarray:
        """Return what the camera sees as (height, width, 3) uint8 RGB.

        Raises:
            DependencyError: No OpenGL that works without a display.
        """
        self._mujoco.mj_camlight(self.model, self.data)
        return self._renderer.render(self.data, CAMERA, width, height)

    def seen_geoms(self, width: int, height: int) -> np.ndarray:
        """Return (height, width) int32: the number of the geom at each pixel, -1 for none."""
        self._mujoco.mj_camlight(self.model, self.data)
        return self._renderer.segment(self.data, CAMERA, width, height)

    def seen_pixels(self, width: int, height: int) -> dict[str, int]:
        """Return per colour how many pixels of its block the camera sees."""
        geoms = self.seen_geoms(width, height)
        return {
            block.colour: int((geoms == self.block_geom(number)).sum())
            for number, block in enumerate(self.scene.blocks)
        }

    def block_geom(self, number: int) -> int:
        """Return the number of the geom of a block of `scene`."""
        return int(self.model.geom(block_name(number)).id)

    @property
    def renderer(self) -> str:
        """Which OpenGL draws: "osmesa" or "egl"; "" before the first picture."""
        return self._renderer.backend

    @property
    def time_ns(self) -> int:
        """Simulated nanoseconds since the reset."""
        return round(self.data.time * 1e9)

    def joint_positions(self) -> np.ndarray:
        """Return (n,) radians, base to wrist."""
        return self.data.qpos[self._joints].copy()

    def opening(self) -> float:
        """Return how far the gripper is open, measured at its fingers: 0 ... 1."""
        travel = self._open_m - self._closed_m
        share = (self.data.qpos[self._fingers] - self._closed_m) / travel
        return float(np.clip(share.mean(), 0.0, 1.0))

    def ee_pose(self) -> Pose:
        """Return where the tool point is, in the base frame."""
        rotation = self.data.site_xmat[self._site].reshape(3, 3).copy()
        return Pose(self.data.site_xpos[self._site].copy(), rotation)

    def state(self) -> CellState:
        """Return the places of all things, which tasks and the expert look at."""
        blocks = {}
        for number, block in enumerate(self.scene.blocks):
            blocks[block.colour] = self.data.joint(block_name(number)).qpos[:3].copy()
        return CellState(
            tool=self.ee_pose(),
            opening=self.opening(),
            blocks=blocks,
            start={
                b.colour: np.array([*b.position_m, BLOCK_SIZE_M / 2]) for b in self.scene.blocks
            },
            plate=None
            if self.scene.plate_m is None
            else np.array([*self.scene.plate_m, PLATE_HEIGHT_M]),
            gap_m=self.arm.gap_m,
        )

    def hidden_blocks(self) -> tuple[str, ...]:
        """Colours of the blocks of which the arm hides more than half from the camera."""
        self._mujoco.mj_camlight(self.model, self.data)
        return tuple(b.colour for b in self.scene.blocks if self._seen_share(b.colour) < SEEN_SHARE)

    def close(self) -> None:
        """Give the OpenGL context back."""
        self._renderer.close()

    def _place(self, scene: Scene) -> None:
        self._mujoco.mj_resetData(self.model, self.data)
        self.scene = scene
        cell_model.place(self.model, self.data, scene)

    def _number(self, colour: str) -> int:
        return next(n for n, block in enumerate(self.scene.blocks) if block.colour == colour)

    def _finger_positions(self, opening: float) -> np.ndarray:
        return self._closed_m + opening * (self._open_m - self._closed_m)

    def _seen_share(self, colour: str) -> float:
        """Share of the block's upper corners, face centres and middle that the camera sees."""
        name = block_name(self._number(colour))
        geom = self.model.geom(name).id
        centre, axes = self.data.geom_xpos[geom], self.data.geom_xmat[geom].reshape(3, 3)
        camera = self.data.cam_xpos[self._camera_id]
        hit = np.zeros(1, np.int32)
        seen = 0
        for offset in _TEST_POINTS:
            ray = centre + axes @ offset - camera
            self._mujoco.mj_ray(self.model, self.data, camera, ray, _SEEN_GROUPS, 1, -1, hit)
            seen += int(hit[0] == geom)
        return seen / len(_TEST_POINTS)


_SEEN_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # pads and the like are in group 3
# Inside the block, close to its upper corners and the middles of its upper edges.
_TEST_POINTS = np.array([[x, y, 0.8] for x in (-0.8, 0.0, 0.8) for y in (-0.8, 0.0, 0.8)]) * (
    BLOCK_SIZE_M / 2
)


def _import_mujoco() -> Any:
    try:
        import mujoco
    except ImportError as error:
        raise DependencyError(
            "the simulated cell needs mujoco, which is not installed: pip install '.[sim]' in the "
            "folder of openvla_ros, or run `make setup`."
        ) from error
    return mujoco
