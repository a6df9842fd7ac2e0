"""The MuJoCo model of a cell, composed in code: arm, table, blocks, plate, lamp, camera.

The model is compiled once; `place` writes one scene into it, so that a reset costs no compilation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from openvla_ros.control.displacement import euler_matrix
from openvla_ros.control.pose import rotation_to_quaternion
from openvla_ros.sim.arms import TOOL_SITE, ArmModel
from openvla_ros.sim.rendering import MAX_SIDE_PIXELS
from openvla_ros.sim.scene import BLOCK_SIZE_M, PLATE_HEIGHT_M, PLATE_RADIUS_M, Scene

PHYSICS_STEP_S = 0.002
CAMERA = "third_person"
CAMERA_POSITION_M = np.array([0.92, 0.16, 0.58])
CAMERA_TARGET_M = np.array([0.29, 0.015, 0.09])
CAMERA_FOVY_DEGREES = 36.0
TABLE_HALF_M = (0.45, 0.55, 0.02)
TABLE_CENTRE_M = (0.30, 0.0)
FLOOR_Z_M = -0.70
BLOCK_MASS_KG = 0.05
_UNSEEN = 3  # MuJoCo's pictures show groups 0 to 2
AWAY_M = (0.0, 0.0, -5.0)  # below the floor: where a plate is that a scene does not have


def block_name(number: int) -> str:
    """Name of the body, and of the geom, of a block."""
    return f"block{number}"


def build_model(arm: ArmModel, blocks: int) -> Any:
    """Return the compiled MuJoCo model of a cell.

    Raises:
        DependencyError: The arm's meshes are not installed.
    """
    spec = arm.read()
    _set_options(spec)
    _fit_arm(spec, arm)
    _add_furniture(spec)
    for number in range(blocks):
        _add_block(spec, block_name(number))
    return spec.compile()


def _set_options(spec: Any) -> None:
    import mujoco

    spec.compiler.inertiagrouprange = [0, 5]  # of blocks too: the arm's file says 4 to 5
    spec.option.timestep = PHYSICS_STEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = (
        mujoco.mjtCone.mjCONE_ELLIPTIC
    )  # with impratio: what is gripped does not creep
    spec.option.impratio = 10.0
    spec.visual.global_.offwidth = MAX_SIDE_PIXELS
    spec.visual.global_.offheight = MAX_SIDE_PIXELS
    spec.visual.quality.shadowsize = 1024
    spec.visual.quality.offsamples = 4
    spec.visual.map.znear = 0.05
    spec.visual.headlight.specular = [0.1] * 3


def _fit_arm(spec: Any, arm: ArmModel) -> None:
    """Put the arm at its place, give it servos, a tool point and finger pads."""
    import mujoco

    root = spec.body(arm.root)
    root.pos, root.quat = [arm.base_x_m, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    for body in [root, *root.find_all(mujoco.mjtObj.mjOBJ_BODY)]:
        body.gravcomp = 1.0
        for geom in body.geoms:
            geom.contype, geom.conaffinity = 0, 0
            geom.group = _UNSEEN if geom.name in arm.hidden else geom.group
    for name in (*arm.joints, *(finger.joint for finger in arm.fingers)):
        joint = spec.joint(name)
        joint.frictionloss = 0.0
        joint.armature = 0.1 if name in arm.joints else 0.02
    for name, stiffness, torque in zip(arm.joints, arm.stiffness, arm.max_torque, strict=True):
        _add_servo(spec, name, stiffness, torque)
    for finger in arm.fingers:
        _add_servo(spec, finger.joint, 1500.0, arm.finger_force_n)
        spec.joint(finger.joint).parent.add_geom(
            name=f"{finger.joint}_pad",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=finger.pad_centre_m,
            size=finger.pad_half_m,
            mass=0.0,
            group=_UNSEEN,
            solref=[0.004, 1.0],  # stiff: what is gripped keeps its width
            solimp=[0.97, 0.99, 0.001, 0.5, 2.0],
            friction=[1.5, 0.02, 0.001],
            condim=4,
        )
    first, second = arm.fingers
    spec.add_equality(  # one motor moves both fingers
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=second.joint,
        name2=first.joint,
        data=[0.0, second.open_m / first.open_m, *[0.0] * 9],
        solref=[0.004, 1.0],
    )
    x, y, z, w = rotation_to_quaternion(np.array(arm.tool_axes).T)
    spec.body(arm.tool_body).add_site(
        name=TOOL_SITE, pos=arm.tool_point_m, quat=[w, x, y, z], group=_UNSEEN
    )


def _add_servo(spec: Any, joint: str, stiffness: float, limit: float) -> None:
    import mujoco

    servo = spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        forcerange=[-limit, limit],
        forcelimited=True,
    )
    servo.set_to_position(kp=stiffness, dampratio=1.0)


def _add_furniture(spec: Any) -> None:
    import mujoco

    world = spec.worldbody
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0.0, 0.0, FLOOR_Z_M],
        size=[6.0, 6.0, 0.1],
        contype=0,
        conaffinity=0,
    )
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[*TABLE_CENTRE_M, -TABLE_HALF_M[2]],
        size=TABLE_HALF_M,
        friction=[0.6, 0.005, 0.0001],
    )
    # A mocap body: it stands where it is put, and can be put somewhere else without compiling.
    world.add_body(name="plate", mocap=True, pos=AWAY_M).add_geom(
        name="plate",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[PLATE_RADIUS_M, PLATE_HEIGHT_M / 2, 0.0],
        rgba=[0.97, 0.97, 0.97, 1.0],
    )
    world.add_light(name="lamp", type=mujoco.mjtLightType.mjLIGHT_SPOT, pos=[0.3, 0.0, 1.5])
    world.add_camera(name=CAMERA, fovy=CAMERA_FOVY_DEGREES)
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.78, 0.82],
        rgb2=[0.55, 0.58, 0.62],
        width=64,
        height=384,
    )


def _add_block(spec: Any, name: str) -> None:
    import mujoco

    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[BLOCK_SIZE_M / 2] * 3,
        mass=BLOCK_MASS_KG,
        friction=[1.0, 0.02, 0.001],
        condim=4,
    )


def place(model: Any, data: Any, scene: Scene) -> None:
    """Write looks, lamp, camera and the places of all things of `scene`; the arm is left alone."""
    for number, block in enumerate(scene.blocks):
        name = block_name(number)
        model.geom(name).rgba[:3] = block.rgb
        data.joint(name).qpos[:3] = [*block.position_m, BLOCK_SIZE_M / 2]
        data.joint(name).qpos[3:] = [np.cos(block.yaw_rad / 2), 0, 0, np.sin(block.yaw_rad / 2)]
        data.joint(name).qvel[:] = 0.0
    plate = AWAY_M if scene.plate_m is None else (*scene.plate_m, PLATE_HEIGHT_M / 2)
    data.mocap_pos[model.body("plate").mocapid[0]] = plate
    model.geom("table").rgba[:3] = scene.table_rgb
    model.geom("floor").rgba[:3] = scene.floor_rgb
    lamp = model.light("lamp")
    lamp.pos[:] = scene.light_m
    lamp.dir[:] = np.array([*TABLE_CENTRE_M, 0.0]) - scene.light_m
    lamp.dir[:] /= np.linalg.norm(lamp.dir)
    lamp.cutoff[:] = 60.0
    lamp.diffuse[:] = scene.lamp
    lamp.specular[:] = 0.1
    model.vis.headlight.ambient[:] = scene.ambient
    model.vis.headlight.diffuse[:] = 0.25
    camera = model.camera(CAMERA)
    camera.pos[:] = CAMERA_POSITION_M + scene.camera_shift_m
    x, y, z, w = rotation_to_quaternion(_camera_axes(scene))
    camera.quat[:] = [w, x, y, z]


def camera_pose(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return (3,) metres and the (3, 3) rotation of the camera's optical frame, both to base.

    Optical axes as in ROS: x to the right of the picture, y down, z into the scene.
    """
    return CAMERA_POSITION_M + scene.camera_shift_m, _camera_axes(scene) * [1.0, -1.0, -1.0]


def focal_length_pixels(height: int) -> float:
    """Return the focal length of a picture that is `height` pixels high; pixels are square."""
    return float(height / 2 / np.tan(np.radians(CAMERA_FOVY_DEGREES) / 2))


def places_in_picture(scene: Scene, points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return (n, 2) where (n, 3) points of the base frame are in the picture.

    Fractions of width and height, x to the right and y down: 0 ... 1 inside the picture.
    """
    position, rotation = camera_pose(scene)
    seen = (points - position) @ rotation  # (n, 3) in the optical frame
    pixels = focal_length_pixels(height) * seen[:, :2] / seen[:, 2:]
    return pixels / (width, height) + 0.5


def _camera_axes(scene: Scene) -> np.ndarray:
    """(3, 3) columns in OpenGL's way: right, up, towards the viewer."""
    backward = CAMERA_POSITION_M - CAMERA_TARGET_M
    backward = backward / np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right = right / np.linalg.norm(right)
    level = np.stack([right, np.cross(backward, right), backward], axis=1)
    up_down, left_right = scene.camera_turn_rad
    return level @ euler_matrix(np.array([up_down, left_right, 0.0]))
