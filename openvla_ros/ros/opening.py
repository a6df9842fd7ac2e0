"""Parameters → a session: the policy loaded, tested and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openvla_ros.config import NodeConfig
from openvla_ros.config.policy import ModelConfig
from openvla_ros.ros.decoding import choose_decoder
from openvla_ros.ros.policies import latency_warning, measure_latency_s
from openvla_ros.ros.session import Session
from openvla_ros.types import Policy


def open_session(
    config: NodeConfig,
    *,
    load: Callable[[ModelConfig], Policy],
    log: Any,
    **session_arguments: Any,
) -> tuple[Session, str]:
    """Return a session, and a warning about what this machine is too slow for, or "".

    Args:
        config: Checked parameters.
        load: Model parameters → policy.
        log: A logger.
        **session_arguments: For `Session`.

    Raises:
        OpenVLAError: The policy cannot be loaded, fails its self-test, or does not suit the robot.
    """
    policy = load(config.model)
    for name, choice in policy.info.choices.items():
        log.info(f"{name}: {choice}")
    policy.self_test()
    latency_s = measure_latency_s(
        policy, config.model.warmup_iterations, instruction=config.inputs.instruction
    )
    if latency_s is not None:
        log.info(f"one prediction takes {latency_s * 1000.0:.0f} ms")
    warning = latency_warning(latency_s, config.timing)
    if warning:
        log.warning(warning)
    decode, why = choose_decoder(config.inputs.image_transport)
    log.info(f"images are decoded by {why}")
    session = Session(policy, config, decode=decode, log=log, **session_arguments)
    return session, warning
