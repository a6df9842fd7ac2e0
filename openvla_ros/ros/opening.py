"""Parameters → a session: the policy loaded, tested and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openvla_ros.config import NodeConfig
from openvla_ros.config.policy import ModelConfig
from openvla_ros.ros.decoding import choose_decoder
from openvla_ros.ros.frames import Answer, Clocks
from openvla_ros.ros.policies import latency_warning, measure_latency_s
from openvla_ros.ros.session import Session
from openvla_ros.types import Policy


def open_session(
    config: NodeConfig,
    *,
    load: Callable[[ModelConfig], Policy],
    clocks: Clocks,
    on_answer: Callable[[Answer], None],
    log: Any,
) -> tuple[Session, str]:
    """Return a session, and a warning about what this machine is too slow for, or "".

    Raises:
        OpenVLAError: The policy cannot be loaded, fails its self-test, or does not suit the robot.
    """
    policy = load(config.model)
    for name, choice in policy.info.choices.items():
        log.info(f"{name}: {choice}")
    policy.self_test()
    latency_s = measure_latency_s(policy, config.model.warmup_iterations)
    if latency_s is not None:
        log.info(f"one prediction takes {latency_s * 1000.0:.0f} ms")
    warning = latency_warning(latency_s, config.timing)
    if warning:
        log.warning(warning)
    decode, why = choose_decoder(config.inputs.image_transport)
    log.info(f"images are decoded by {why}")
    session = Session(policy, config, decode=decode, clocks=clocks, on_answer=on_answer, log=log)
    return session, warning
