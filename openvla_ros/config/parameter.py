"""One parameter as users see it: name, type, default, unit, range, meaning.

`openvla_ros.config` lists them all; the node, the YAML file and the README table are made from
them. This file knows no parameter by name, and no ROS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from openvla_ros.errors import ConfigurationError

_TYPE_NAMES = {bool: "bool", int: "int", float: "double", str: "string"}


@dataclass(frozen=True)
class Parameter:
    """One parameter as users see it.

    Attributes:
        name: ROS name, dots separate groups.
        default: A bool, int, float, str, or a tuple of floats or ints (then the length is fixed).
        description: What it does, in the user's words.
        unit: SI unit, or "".
        minimum: Smallest allowed value (of every element), or None.
        maximum: Largest allowed value (of every element), or None.
        choices: Allowed strings; empty = any.
        only_unconfigured: True when a change takes effect at configure only, and is refused later.
    """

    name: str
    default: Any
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    only_unconfigured: bool = False

    @property
    def type_name(self) -> str:
        """One of bool, int, double, string, double_array, integer_array."""
        if isinstance(self.default, tuple):
            return "double_array" if isinstance(self.default[0], float) else "integer_array"
        return _TYPE_NAMES[type(self.default)]

    @property
    def range_text(self) -> str:
        """What is allowed, in words; "" when everything is."""
        if self.choices:
            return ", ".join(choice or '""' for choice in self.choices)
        if self.minimum is None and self.maximum is None:
            return ""
        low = "" if self.minimum is None else f"{self.minimum:g}"
        high = "" if self.maximum is None else f"{self.maximum:g}"
        return f"{low} … {high}"

    def check(self, value: Any) -> Any:
        """Return the value as Python stores it: tuples for arrays, float for a whole number.

        Raises:
            ConfigurationError: Wrong type, not finite, out of range, not among the choices.
        """
        if isinstance(self.default, tuple):
            return self._check_array(value)
        if isinstance(self.default, float) and isinstance(value, int) and type(value) is not bool:
            value = float(value)
        if "nan" in self.choices and isinstance(value, float) and math.isnan(value):
            value = "nan"  # ROS reads this word as a number
        if type(value) is not type(self.default):
            raise self._error(value, f"a {self.type_name}")
        if isinstance(value, str):
            if self.choices and value not in self.choices:
                raise self._error(value, f"one of: {self.range_text}")
        elif not isinstance(value, bool):
            self._check_number(value)
        return value

    def _check_array(self, value: Any) -> tuple[Any, ...]:
        try:
            items = tuple(value)
        except TypeError:
            raise self._error(value, f"a list of {len(self.default)} numbers") from None
        if len(items) != len(self.default):
            raise self._error(value, f"exactly {len(self.default)} numbers")
        kind = type(self.default[0])
        for item in items:
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                raise self._error(value, f"a {self.type_name}")
            self._check_number(item)
            if kind(item) != item:
                raise self._error(value, f"a {self.type_name}")
        return tuple(kind(item) for item in items)

    def _check_number(self, value: float) -> None:
        if not math.isfinite(value):
            raise self._error(value, "a finite number")
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not low <= value <= high:
            raise self._error(value, f"within {self.range_text} {self.unit}".rstrip())

    def _error(self, value: Any, allowed: str) -> ConfigurationError:
        return ConfigurationError(f"parameter '{self.name}' is {value!r}; it must be {allowed}.")


def parameter_field(name: str, default: Any, description: str, **rest: Any) -> Any:
    """A dataclass field that carries its `Parameter`."""
    parameter = Parameter(name, default, description, **rest)
    return field(default=default, metadata={"parameter": parameter})


def fixed_field(name: str, default: Any, description: str, **rest: Any) -> Any:
    """A field that may change only while the node is unconfigured."""
    return parameter_field(name, default, description, only_unconfigured=True, **rest)
