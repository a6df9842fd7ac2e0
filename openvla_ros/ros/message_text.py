"""Message definitions as text, for programs that read serialised messages: Foxglove, MCAP.

Every ROS installation keeps the .msg files; they are read from there, so constants and comments
come along.
"""

from __future__ import annotations

import re
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from openvla_ros.errors import ConfigurationError

#: What stands between two definitions in a "ros2msg" schema.
SEPARATOR = "\n" + "=" * 80 + "\n"
_PRIMITIVES = frozenset(
    "bool byte char float32 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64 string "
    "wstring".split()
)
_FIELD = re.compile(r"^\s*([A-Za-z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[a-z]\w*", re.MULTILINE)


def schema_text(type_name: str) -> str:
    """Return a message type in "ros2msg" form: its definition, then those of all types in it.

    Args:
        type_name: Such as "std_msgs/msg/String".

    Raises:
        ConfigurationError: The package or the message is not installed.
    """
    definitions: dict[str, str] = {}
    waiting = [type_name]
    while waiting:
        name = waiting.pop(0)
        if name in definitions:
            continue
        text = _definition(name)
        definitions[name] = text
        waiting += [_full_name(field, name) for field in _types_in(text)]
    first, *rest = definitions.items()
    parts = [first[1], *(f"MSG: {_short(name)}\n{text}" for name, text in rest)]
    return SEPARATOR.join(part.rstrip("\n") for part in parts) + "\n"


def _definition(type_name: str) -> str:
    package, kind, name = _parts(type_name)
    try:
        folder = Path(get_package_share_directory(package))
        return (folder / kind / f"{name}.msg").read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError) as error:
        raise ConfigurationError(
            f"the definition of {type_name} is not installed here ({error}); source the workspace "
            "that holds it."
        ) from error


def _parts(type_name: str) -> tuple[str, str, str]:
    parts = type_name.split("/")
    if len(parts) != 3:
        raise ConfigurationError(
            f"{type_name!r} is not a message type such as std_msgs/msg/String."
        )
    return parts[0], parts[1], parts[2]


def _types_in(text: str) -> list[str]:
    without_comments = re.sub(r"#.*", "", text)
    return [name for name in _FIELD.findall(without_comments) if name not in _PRIMITIVES]


def _full_name(field: str, inside: str) -> str:
    """Header → std_msgs/msg/Header; Point and geometry_msgs/Point → geometry_msgs/msg/Point."""
    if field == "Header":
        return "std_msgs/msg/Header"
    package = inside.split("/")[0]
    *prefix, name = field.split("/")
    return f"{prefix[0] if prefix else package}/msg/{name}"


def _short(type_name: str) -> str:
    package, _, name = _parts(type_name)
    return f"{package}/{name}"
