"""The parameter table of `config` as ROS parameters: declared, read, checked on change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from openvla_ros.config import PARAMETERS, NodeConfig, refuse_unknown
from openvla_ros.config.parameter import Parameter
from openvla_ros.errors import ConfigurationError, InstructionError
from openvla_ros.messages import check_instruction

_TYPES = {
    "bool": ParameterType.PARAMETER_BOOL,
    "int": ParameterType.PARAMETER_INTEGER,
    "double": ParameterType.PARAMETER_DOUBLE,
    "string": ParameterType.PARAMETER_STRING,
    "double_array": ParameterType.PARAMETER_DOUBLE_ARRAY,
    "integer_array": ParameterType.PARAMETER_INTEGER_ARRAY,
}
# Declared by rclpy itself, or on its behalf.
_OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def declare_parameters(node: Node, names: Iterable[str] = PARAMETERS) -> None:
    """Declare parameters with unit, range and meaning, as rqt and `ros2 param` show them.

    Args:
        node: What declares them.
        names: All of them, or those that this node uses.
    """
    for name in names:
        parameter = PARAMETERS[name]
        default = parameter.default
        value = list(default) if isinstance(default, tuple) else default
        node.declare_parameter(name, value, _descriptor(parameter))


def read_config(node: Node) -> NodeConfig:
    """Return the checked values of the declared parameters; the rest is at its default.

    Raises:
        ConfigurationError: A value is not usable, or the node was started with a parameter that it
            does not have.
    """
    refuse_unknown(_undeclared_overrides(node))
    config = NodeConfig.from_values(_current_values(node))
    try:
        check_instruction(config.inputs.instruction)
    except InstructionError as error:
        raise ConfigurationError(f"parameter 'instruction': {error}") from None
    return config


def changed_config(
    node: Node, changes: Iterable[RosParameter], *, is_unconfigured: bool
) -> NodeConfig | None:
    """Return the configuration after the given changes; None when there is none to use.

    That is so when no change is ours, and while other values that the node was started with are
    unusable: each can then be mended on its own, and configure says what is left.

    Raises:
        ConfigurationError: A new value is not usable, or may change only before configure.
    """
    ours = {p.name: p.value for p in changes if p.name in PARAMETERS}
    if not ours:
        return None
    values = _current_values(node)
    for name, value in ours.items():
        parameter = PARAMETERS[name]
        checked = parameter.check(value)
        is_fixed = parameter.only_unconfigured and not is_unconfigured
        if is_fixed and checked != parameter.check(values[name]):
            raise ConfigurationError(
                f"parameter '{name}' takes effect at configure: clean up, set it, configure again."
            )
    try:
        return NodeConfig.from_values({**values, **ours})
    except ConfigurationError:
        if is_unconfigured and not _is_usable(values):
            return None
        raise


def _is_usable(values: dict[str, Any]) -> bool:
    try:
        NodeConfig.from_values(values)
    except ConfigurationError:
        return False
    return True


def _current_values(node: Node) -> dict[str, Any]:
    return {n: node.get_parameter(n).value for n in PARAMETERS if node.has_parameter(n)}


def _undeclared_overrides(node: Node) -> dict[str, Any]:
    # rclpy ignores names that nobody declares, so a misspelt limit would go unnoticed. It keeps the
    # given values in this attribute, in all distributions, and offers no public way to see them.
    given = getattr(node, "_parameter_overrides", {})
    return {
        name: override.value
        for name, override in given.items()
        if name not in PARAMETERS and not name.startswith(_OF_RCLPY)
    }


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    when = " Takes effect at configure." if parameter.only_unconfigured else ""
    descriptor = ParameterDescriptor(
        name=parameter.name,
        type=_TYPES[parameter.type_name],
        description=f"{parameter.description}{unit}.{when}",
        additional_constraints=parameter.range_text,
        # `action_hz:=5` is an integer for ROS, and `mock_action:=[0,0,0,0,0,0,1]` an array of
        # them; `mock_fault:=nan` is a number. Parameter.check accepts and converts them.
        dynamic_typing=parameter.type_name in ("double", "double_array")
        or "nan" in parameter.choices,
    )
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        if parameter.type_name == "double":
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif parameter.type_name == "int":
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    return descriptor
