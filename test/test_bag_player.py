"""A bag is played in its order, on its own clock, and its commands reach no controller."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")
pytest.importorskip("rosbags", reason="bags need the extra `bags`")

import rclpy
from rclpy.context import Context

from openvla_ros.data.bag_file import BagFile, typestore_for
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.bag_player import CLOCK_HZ, LINGER_S, RECORDED, BagPlayer

pytestmark = pytest.mark.ros

TEXT, TWIST = "std_msgs/msg/String", "geometry_msgs/msg/TwistStamped"
BEGIN_NS = 1_700_000_000_000_000_000


class FakeTime:
    """A steady clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.slept.append(seconds)
        self.now_s += seconds


class Spy:
    """Stands in for a publisher: keeps what was published, and when."""

    def __init__(self, name: str, log: list, time: FakeTime) -> None:
        self.name, self.log, self.time = name, log, time

    def publish(self, message) -> None:
        self.log.append((self.time.now_s, self.name, message))


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    rclpy.init(context=made)
    yield made
    rclpy.shutdown(context=made)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    store = typestore_for([TEXT, TWIST])
    file = BagFile(tmp_path / "bag", {"/instruction": TEXT, "/servo/twist": TWIST})
    for index, text in enumerate(["first", "second", "third"]):
        raw = bytes(store.serialize_cdr(store.types[TEXT](text), TEXT))
        file.write("/instruction", BEGIN_NS + index * 500_000_000, raw)
    kinds = store.types
    header = kinds["std_msgs/msg/Header"](kinds["builtin_interfaces/msg/Time"](1, 2), "base")
    vector = kinds["geometry_msgs/msg/Vector3"](0.1, 0.0, 0.0)
    twist = kinds[TWIST](header, kinds["geometry_msgs/msg/Twist"](vector, vector))
    file.write("/servo/twist", BEGIN_NS + 250_000_000, bytes(store.serialize_cdr(twist, TWIST)))
    file.close()
    return tmp_path / "bag"


def played(bag: Path, context: Context, **arguments) -> tuple[BagPlayer, list, FakeTime]:
    """Play with a fake clock; return (steady time, topic, message) of everything published."""
    time = FakeTime()
    arguments = {"keep": ["/instruction"], **arguments}
    player = BagPlayer(
        bag, context=context, steady_s=lambda: time.now_s, sleep=time.sleep, **arguments
    )
    log: list = []
    player._clock_publisher = Spy("/clock", log, time)
    player._outputs = {name: Spy(player.topics[name].name, log, time) for name in player._outputs}
    player.counts = player.play()
    player.destroy_node()
    return player, log, time


def stamp_ns(clock) -> int:
    return clock.clock.sec * 10**9 + clock.clock.nanosec


def test_messages_come_in_order_at_their_times_behind_their_clock(bag: Path, context) -> None:
    player, log, _ = played(bag, context)
    messages = [(at, name) for at, name, _ in log if name != "/clock"]
    assert messages == [
        (pytest.approx(100.0), "/instruction"),
        (pytest.approx(100.25), f"{RECORDED}/servo/twist"),
        (pytest.approx(100.5), "/instruction"),
        (pytest.approx(101.0), "/instruction"),
    ]
    assert player.counts == {"/instruction": 3, "/servo/twist": 1}
    clock_ns = 0
    for _, name, message in log:
        if name == "/clock":
            assert stamp_ns(message) > clock_ns or clock_ns == 0, "the clock never goes back"
            clock_ns = stamp_ns(message)
    instructions = [i for i, (_, name, _) in enumerate(log) if name == "/instruction"]
    for index, position in enumerate(instructions):
        before = stamp_ns(log[position - 1][2])
        assert before == BEGIN_NS + index * 500_000_000, "its time comes just before a message"


def test_the_clock_is_fine_and_runs_on_for_the_last_answer(bag: Path, context) -> None:
    _, log, _ = played(bag, context)
    clocks = [stamp_ns(message) for _, name, message in log if name == "/clock"]
    steps = [b - a for a, b in itertools.pairwise(clocks)]
    assert max(steps) <= 1e9 / CLOCK_HZ + 1
    assert clocks[-1] == BEGIN_NS + 1_000_000_000 + round(LINGER_S * 1e9)


def test_a_rate_changes_the_pace_and_not_the_bag_time(bag: Path, context) -> None:
    _, log, time = played(bag, context, rate=2.0)
    assert [at for at, name, _ in log if name == "/instruction"] == pytest.approx(
        [100.0, 100.25, 100.5]
    )
    assert time.now_s == pytest.approx(100.5 + LINGER_S / 2)


def test_commands_are_played_below_recorded_unless_asked_for(bag: Path, context) -> None:
    """A bag of a robot that moved must not move the robot that is connected now."""
    player, _, _ = played(bag, context, keep=[])
    assert player.topics["/servo/twist"].name == "/recorded/servo/twist"
    player, _, _ = played(bag, context, keep=["/servo/twist"])
    assert player.topics["/servo/twist"].name == "/servo/twist"


def test_texts_are_commands_unless_asked_for(bag: Path, context) -> None:
    """Every std_msgs/String kept its name, a recorded program for a driver among them."""
    player, log, _ = played(bag, context, keep=[])
    assert player.topics["/instruction"].name == "/recorded/instruction"
    assert not [name for _, name, _ in log if name == "/instruction"]


def test_a_topic_to_keep_that_is_not_there_is_an_error_that_lists_what_is(bag, context) -> None:
    with pytest.raises(ConfigurationError, match="/instruction, /servo/twist"):
        BagPlayer(bag, context=context, keep=["/tf"])


def test_messages_arrive_as_they_were_recorded(bag: Path, context) -> None:
    """Real publishers: what a subscriber gets is what the bag holds."""
    from geometry_msgs.msg import TwistStamped
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    player = BagPlayer(
        bag, keep=["/instruction"], context=context, sleep=lambda s: None, steady_s=lambda: 0.0
    )
    node = rclpy.create_node("listener", context=context)
    texts: list[str] = []
    twists: list[TwistStamped] = []
    node.create_subscription(String, "/instruction", lambda m: texts.append(m.data), 10)
    node.create_subscription(TwistStamped, "/recorded/servo/twist", twists.append, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    outputs = player._outputs.values()
    for _ in range(1000):
        executor.spin_once(timeout_sec=0.02)
        if all(output.get_subscription_count() for output in outputs):
            break
    assert player.has_listeners()
    player.play()
    for _ in range(1000):
        executor.spin_once(timeout_sec=0.02)
        if len(texts) == 3 and twists:
            break
    assert texts == ["first", "second", "third"]
    assert twists[0].twist.linear.x == 0.1 and twists[0].header.frame_id == "base"
    executor.shutdown()
    node.destroy_node()
    player.destroy_node()
