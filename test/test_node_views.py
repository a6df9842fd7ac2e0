"""/diagnostics and ~/debug/* of the node, over real DDS."""

from __future__ import annotations

import sys
import threading
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Path
from node_cell import MOVING, NAME, Cell
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from visualization_msgs.msg import Marker, MarkerArray

from openvla_ros.control.states import Reason, State
from openvla_ros.evaluation.pictures.drawing import BAD, GOOD, MOVE
from openvla_ros.evaluation.pictures.overlay import HEADER, HEIGHT, ON_PICTURE, PICTURE, WIDTH
from openvla_ros.ros import debug_views
from openvla_ros.ros.node import OpenVLANode

pytestmark = pytest.mark.ros

ACTION = [0.02, 0.0, 0.01, 0.0, 0.0, 0.1, 1.0]


def watch(cell: Cell, kind: type, topic: str) -> list[Any]:
    """Subscribe, and return the growing list once the node knows of it."""
    heard: list[Any] = []
    cell.hear(kind, f"{NAME}/debug/{topic}", heard, 10)
    publishers = {"image": "_image", "image/compressed": "_compressed"}
    publisher = getattr(cell.node._debug_views, publishers.get(topic, f"_{topic}"))
    cell.wait(publisher.get_subscription_count, f"the subscription to {topic}")
    return heard


def pixels(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


# ~/debug ---------------------------------------------------------------------------------------


def test_without_a_subscriber_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("draw_overlay", "step_markers", "path_message", "InferenceWorker"):
        monkeypatch.setattr(debug_views, name, lambda *_, name=name, **__: calls.append(name))
    with Cell(**MOVING) as cell:
        cell.start()
        for _ in range(3):
            cell.answer()
        cell.node._debug_views._look()
        assert not calls


def test_the_debug_image_shows_what_the_model_saw_and_its_answer() -> None:
    seen = np.full((224, 224, 3), (200, 60, 120), np.uint8)
    with Cell(**MOVING, mock_action=ACTION) as cell:
        heard = watch(cell, Image, "image")
        cell.start()
        sent = cell.image(seen)
        message = cell.wait(lambda: heard and heard[0], "a picture")
        assert message.header == sent.header and message.encoding == "rgb8"
        picture = pixels(message)
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert (picture[HEADER:, :PICTURE] == (200, 60, 120)).all()
        assert (picture == MOVE).all(axis=-1).sum() > 100
        assert (picture[:HEADER] == GOOD).all(axis=-1).sum() > 500


def test_the_model_sees_only_the_region_of_interest() -> None:
    pixels_sent = np.zeros((40, 60, 3), np.uint8)
    pixels_sent[10:30, 20:40] = (0, 0, 250)
    with Cell(image_roi=[20, 10, 20, 20]) as cell:
        heard = watch(cell, Image, "image")
        cell.start()
        cell.image(pixels_sent)
        picture = pixels(cell.wait(lambda: heard and heard[0], "a picture"))
        assert (picture[HEADER:, :PICTURE] == (0, 0, 250)).all()


def test_who_subscribes_late_sees_the_last_answer_and_its_compressed_form() -> None:
    with Cell(**MOVING) as cell:
        cell.start()
        cell.answer()
        for topic, kind in (("image", Image), ("image/compressed", CompressedImage)):
            heard = watch(cell, kind, topic)
            cell.wait(lambda heard=heard: heard, f"a picture on {topic}")
        jpeg = cv2.imdecode(np.frombuffer(heard[0].data, np.uint8), cv2.IMREAD_COLOR)
        assert jpeg.shape == (HEIGHT, WIDTH, 3)
        assert "jpeg" in heard[0].format


def test_a_stop_is_drawn_although_no_answer_comes() -> None:
    with Cell(**MOVING) as cell:
        heard = watch(cell, Image, "image")
        cell.start()
        cell.answer()
        cell.wait(lambda: heard, "a picture")
        cell.node.stop_for("a test")

        def shows_the_fault() -> bool:
            return (pixels(heard[-1])[:HEADER] == BAD).all(axis=-1).sum() > 500

        cell.wait(shows_the_fault, "a picture with a red badge")


def test_drawing_never_keeps_the_policy_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_go_on = threading.Event(), threading.Event()

    def slow(overlay: Any) -> np.ndarray:
        began.set()
        assert may_go_on.wait(60.0)
        return np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    monkeypatch.setattr(debug_views, "draw_overlay", slow)
    with Cell(**MOVING) as cell:
        heard = watch(cell, Image, "image")
        cell.start()
        cell.answer()
        assert began.wait(60.0)
        for _ in range(3):
            assert cell.answer().executed  # answered although the first is still being drawn
        assert not heard
        may_go_on.set()
        cell.wait(lambda: len(heard) >= 2, "the first and the newest")


def test_a_picture_that_cannot_be_drawn_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = threading.Event()

    def broken(overlay: Any) -> np.ndarray:
        failed.set()
        raise RuntimeError("no paint")

    monkeypatch.setattr(debug_views, "draw_overlay", broken)
    with Cell(**MOVING) as cell:
        watch(cell, Image, "image")
        cell.start()
        cell.answer()
        assert failed.wait(60.0)
        assert cell.answer().executed
    assert "no paint" in capfd.readouterr().err


def test_markers_and_path_begin_at_the_base_while_the_pose_is_not_known() -> None:
    box = {"limits.workspace_min": [0.2, -0.3, 0.0], "limits.workspace_max": [0.6, 0.3, 0.5]}
    with Cell(base_frame="base_link", mock_action=ACTION, speed_scale=1.0, **box) as cell:
        arrays = watch(cell, MarkerArray, "markers")
        paths = watch(cell, Path, "path")
        cell.start()
        cell.answer()
        cell.answer()
        path: Path = cell.wait(
            lambda: next((p for p in paths if len(p.poses) == 3), None), "start and two steps"
        )
        assert path.header.frame_id == "base_link"
        end = path.poses[-1].pose.position
        np.testing.assert_allclose([end.x, end.y, end.z], [0.04, 0.0, 0.02])
        found = {m.type: m for m in arrays[-1].markers}
        assert {m.header.frame_id for m in found.values()} == {"base_link"}
        assert "not known" in found[Marker.TEXT_VIEW_FACING].text
        assert len(found[Marker.LINE_LIST].points) == 24


@pytest.mark.parametrize("parameter", ["publish_debug_image", "publish_debug_markers"])
def test_a_parameter_switches_pictures_or_markers_off(parameter: str) -> None:
    with Cell(**MOVING, **{parameter: False}) as cell:
        pictures, arrays = watch(cell, Image, "image"), watch(cell, MarkerArray, "markers")
        cell.start()
        cell.answer()
        off, on = (pictures, arrays) if "image" in parameter else (arrays, pictures)
        cell.wait(lambda: on, "what is switched on")
        cell.answer()
        cell.wait(lambda: len(on) >= 2, "it again")
        assert not off


def test_without_a_base_frame_there_are_no_markers() -> None:
    with Cell() as cell:
        pictures, arrays = watch(cell, Image, "image"), watch(cell, MarkerArray, "markers")
        cell.start()
        cell.answer()
        cell.wait(lambda: pictures, "a picture")
        assert not arrays


class StandInTf2:
    """As much of tf2_ros as is used: a camera one metre above the base, looking down."""

    class TransformException(Exception):  # noqa: N818 - its name in tf2_ros
        pass

    class Buffer:
        def lookup_transform(self, target: str, source: str, time: Any) -> TransformStamped:
            if (target, source) != ("camera_optical_frame", "base_link"):
                raise StandInTf2.TransformException(f"no {target}")
            found = TransformStamped()
            found.transform.translation.z = 1.0
            half = 0.5**0.5  # x → -y, y → -x, z → -z
            turn = found.transform.rotation
            turn.x, turn.y, turn.z, turn.w = half, -half, 0.0, 0.0
            return found

    class TransformListener:
        def __init__(self, buffer: Any, node: Any, spin_thread: bool) -> None:
            assert not spin_thread


def camera_info() -> CameraInfo:
    info = CameraInfo(width=640, height=480, k=[600.0, 0, 319.5, 0, 600, 239.5, 0, 0, 1])
    info.header.frame_id = "camera_optical_frame"
    return info


def show_place_of_camera_and_tool(cell: Cell) -> None:
    """Publish CameraInfo and the pose of the end effector until the node has both."""
    infos = cell.peer.create_publisher(CameraInfo, "camera_info", 1)
    poses = cell.peer.create_publisher(PoseStamped, "ee_pose", 1)
    cell.wait(infos.get_subscription_count, "a subscription to camera_info")
    cell.wait(poses.get_subscription_count, "a subscription to ee_pose")

    def both() -> bool:
        pose = PoseStamped()
        pose.header.frame_id = "base_link"
        pose.header.stamp = cell.node.get_clock().now().to_msg()
        pose.pose.orientation.w = 1.0
        poses.publish(pose)
        infos.publish(camera_info())
        picture = cell.node._debug_views._picture
        return picture._geometry._info is not None and cell.node.ee_pose.read() is not None

    cell.wait(both, "camera_info and ee_pose")


def test_a_calibrated_camera_puts_the_step_into_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tf2_ros", StandInTf2)
    black = np.zeros((480, 640, 3), np.uint8)
    with Cell(base_frame="base_link", mock_action=ACTION, speed_scale=1.0) as cell:
        heard = watch(cell, Image, "image")
        cell.start()
        show_place_of_camera_and_tool(cell)
        cell.image(black)
        picture = pixels(cell.wait(lambda: heard and heard[-1], "a picture"))
        rows, columns = np.nonzero((picture == ON_PICTURE).all(axis=-1))
        # 20 mm forward, five times as long, seen from 1 m, and 10 mm up: up in the picture.
        scale = PICTURE / 640
        assert abs(columns.mean() - PICTURE / 2) < 2
        assert abs(np.ptp(rows) - 600 * 0.1 / 0.95 * scale) < 6
        assert rows.max() - (HEADER + PICTURE / 2) < 6


def test_without_tf2_the_picture_says_why_it_has_no_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2_ros", None)  # import raises ImportError
    said: list[tuple[str, ...]] = []
    draw = debug_views.draw_overlay
    monkeypatch.setattr(
        debug_views, "draw_overlay", lambda overlay: said.append(overlay.facts) or draw(overlay)
    )
    with Cell(base_frame="base_link") as cell:
        watch(cell, Image, "image")
        cell.start()
        show_place_of_camera_and_tool(cell)
        cell.answer()
        cell.wait(lambda: said, "a picture")
        assert "no arrow in the picture: tf2_ros is not installed" in said[-1]


# /diagnostics ------------------------------------------------------------------------------------


PARTS = ("camera", "model", "inference", "command stream", "controller", "gripper", "GPU")


def diagnostics(cell: Cell) -> list[DiagnosticArray]:
    heard: list[DiagnosticArray] = []
    cell.hear(DiagnosticArray, "/diagnostics", heard, 10)
    return heard


def test_diagnostics_name_every_part_in_every_lifecycle_state() -> None:
    names = [f"openvla_node: {part}" for part in PARTS]
    with Cell(**MOVING) as cell:
        heard = diagnostics(cell)
        first = cell.wait(lambda: heard and heard[0], "diagnostics")
        assert [s.name for s in first.status] == names
        assert first.header.stamp.sec > 0 and first.status[0].hardware_id
        model = next(s for s in first.status if s.name.endswith("model"))
        assert model.level == DiagnosticStatus.STALE
        cell.start()
        cell.answer()

        def all_well() -> bool:
            return all(s.level == DiagnosticStatus.OK for s in heard[-1].status)

        cell.wait(all_well, "a healthy node")
        values = {v.key: v.value for s in heard[-1].status for v in s.values}
        assert values["backend"] == "mock" and int(values["answers"]) >= 1
        assert values["topic"] == f"{NAME}/twist_cmd"


def test_diagnostics_of_two_namespaces_have_different_names() -> None:
    with Cell(**MOVING) as cell:
        heard = diagnostics(cell)
        robot = OpenVLANode(
            context=cell.context,
            namespace="/left/arm",
            parameter_overrides=[Parameter("backend", value="mock")],
        )
        executor = SingleThreadedExecutor(context=cell.context)
        executor.add_node(robot)
        try:

            def names() -> set[str]:
                executor.spin_once(timeout_sec=0.05)
                return {status.name for message in heard for status in message.status}

            expected = {f"{name}: GPU" for name in ("openvla_node", "left/arm/openvla_node")}
            cell.wait(lambda: expected <= names(), "the names of both")
        finally:
            executor.shutdown()
            robot.destroy_node()


def test_a_fault_is_an_error_of_its_part_within_a_period() -> None:
    with Cell(**MOVING) as cell:
        heard = diagnostics(cell)
        cell.start()
        cell.node.stop_for("a test")
        cell.wait_status(State.FAULT, Reason.MODEL_ERROR)

        def model_is_bad() -> bool:
            levels = {s.name: s.level for s in heard[-1].status} if heard else {}
            return levels.get("openvla_node: model") == DiagnosticStatus.ERROR

        cell.wait(model_is_bad, "an error of the model")
