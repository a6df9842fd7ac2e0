"""Quality of service of every topic of the node, with the reason."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

#: For subscriptions with many messages a second. With rclpy's own callbacks for QoS events, a
#: message that waits for its callback keeps Fast DDS's wait set awake: the executor then spins
#: without pause and holds the interpreter. Where node and publisher share a process, as in tests,
#: twists paused for half a second.
NO_EVENTS = SubscriptionEventCallbacks(use_default_callbacks=False)

#: Camera: matches every publisher, and an old frame is worth nothing.
IMAGE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

#: End-effector pose and teleoperation: matches every publisher, and only the newest counts.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

#: Dead-man switch: no lost message may look like a released switch.
ENABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

#: Instruction: volatile, because a latched subscriber would not hear `ros2 topic pub`.
INSTRUCTION = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

#: Status and active instruction: who comes late sees the current one.
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

#: Twist: reliable, because MoveIt Servo asks for it; a command older than Servo's own time-out of
#: 0.1 s is not delivered any more.
TWIST = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    lifespan=Duration(nanoseconds=100_000_000),
)

#: Target pose: the newest counts, and it holds until the next: no lifespan.
POSE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

#: Gripper: the newest command counts.
GRIPPER = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

#: Answers: wanted complete in a bag.
ACTION = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
