"""What camera, policy and stream share while a policy is loaded.

This file knows no ROS.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionStage
from openvla_ros.control.supervisor import Supervisor
from openvla_ros.ros.frames import Clocks
from openvla_ros.ros.ledger import Ledger


@dataclass
class SharedState:
    """Touch it only while holding `lock`, and do nothing slow while holding it.

    Attributes:
        config: Checked parameters; replaced, never changed.
        is_active: True between activation and deactivation.
        activation: Number of the activation; an answer to a frame of an earlier one is dropped.
    """

    config: NodeConfig
    clocks: Clocks
    supervisor: Supervisor
    stage: MotionStage
    log: Any
    ledger: Ledger = field(default_factory=Ledger)
    lock: threading.RLock = field(default_factory=threading.RLock)
    is_active: bool = False
    activation: int = 0
