"""Parameter files and the parameter table of the README, read from and made from `config`.

`python -m openvla_ros.config.files yaml` prints config/openvla.yaml, `markdown` in place of
`yaml` the README table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from openvla_ros.config import PARAMETERS, refuse_unknown
from openvla_ros.config.parameter import Parameter
from openvla_ros.errors import ConfigurationError

_YAML_HEAD = """\
# Every parameter of openvla_node with its default, unit and range.
# "(configure)": takes effect when the node is configured, and may change only before that.
# Copy what you change into a file of your own and pass it as params_file:=...; a name that is not
# listed here is an error.
"""


def read_parameter_file(path: str | Path) -> dict[str, Any]:
    """Return parameter values by name from a ROS 2 parameter file, checked.

    Raises:
        ConfigurationError: Not readable, not of the form `node: {ros__parameters: {...}}`, an
            unknown parameter or a bad value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        (node,) = content.values()
        values = dict(_flatten(node["ros__parameters"], ""))
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is not a parameter file of openvla_node (expected one node with "
            f"ros__parameters): {error!r}"
        ) from error
    refuse_unknown(values)
    return {name: PARAMETERS[name].check(value) for name, value in values.items()}


def _flatten(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        flat += (
            _flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else [(prefix + key, value)]
        )
    return flat


def yaml_text() -> str:
    """The content of config/openvla.yaml: every parameter at its default, with unit and range."""
    lines = [_YAML_HEAD + "/**:", "  ros__parameters:"]
    group = ""
    for name, parameter in PARAMETERS.items():
        prefix, _, leaf = name.rpartition(".")
        if prefix != group and prefix:
            lines.append(f"    {prefix}:")
        group = prefix
        indent = "      " if prefix else "    "
        lines.append(f"{indent}# {_comment(parameter)}")
        lines.append(f"{indent}{leaf}: {_yaml_value(parameter.default)}")
    return "\n".join(lines) + "\n"


def markdown_table() -> str:
    """The parameter table of the README."""
    lines = [
        "| parameter | type | default | unit | allowed | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, p in PARAMETERS.items():
        meaning = p.description + (" (configure)" if p.only_unconfigured else "")
        default = _yaml_value(p.default)
        lines.append(
            f"| `{name}` | {p.type_name} | `{default}` | {p.unit} | {p.range_text} | {meaning} |"
        )
    return "\n".join(lines) + "\n"


def _comment(parameter: Parameter) -> str:
    facts = [parameter.description]
    if parameter.unit:
        facts.append(f"[{parameter.unit}]")
    if parameter.range_text:
        facts.append(f"{{{parameter.range_text}}}")
    if parameter.only_unconfigured:
        facts.append("(configure)")
    return " ".join(facts)


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_yaml_value(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    print({"yaml": yaml_text, "markdown": markdown_table}[sys.argv[1]](), end="")
