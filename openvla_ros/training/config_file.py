"""The YAML file of a run, read from and made from the dataclasses of `config.py`.

`python -m openvla_ros.training.config_file` prints config/finetune.yaml: every key with its
default, and with what the docstring of its dataclass says about it.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast

import yaml

from openvla_ros.errors import ConfigurationError
from openvla_ros.training.config import FinetuneConfig, SourceConfig

_HEADER = """\
# One fine-tuning run of `openvla-ros finetune`: every key, with its default. Copy what you change;
# a key that is not listed here is an error. Paths are relative to where the command is started.
#
#   openvla-ros finetune --config config/finetune.yaml --dry-run      the plan, nothing is trained
#   openvla-ros finetune --config config/finetune.yaml                train; the same line resumes
#   openvla-ros finetune --config config/finetune.yaml --set optimization.batch_size=8 --out runs/b8
#   torchrun --nproc-per-node 8 -m openvla_ros.cli finetune --config config/finetune.yaml
#   tensorboard --logdir runs                                         watch it
#   openvla-ros replay recordings/demo --checkpoint runs/finetune/result --out runs/replay
#   openvla-ros merge runs/finetune/result runs/merged                plain Hugging Face layout
#
# Data: at least 50 to 100 demonstrations at 5 to 10 Hz, without pauses; see docs/finetune.md.

"""
#: What has no default is shown with an example.
_EXAMPLES: dict[str, Any] = {
    "base": "openvla/openvla-7b",
    "data.sources.path": "recordings/demo",
    "data.sources.name": "my_robot",
}
_WIDTH = 100
_Config = TypeVar("_Config")


def read_finetune_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> FinetuneConfig:
    """Return the configuration of a run.

    Args:
        path: YAML file; config/finetune.yaml lists every key.
        overrides: Dotted key -> value that replaces the file's, such as {"run.seed": 1}; elements
            of lists by number: "data.sources.0.path".

    Raises:
        ConfigurationError: Not readable, an unknown key, a value of another type or out of range.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} is not a configuration of a fine-tuning run; copy config/finetune.yaml."
        )
    for key, value in (overrides or {}).items():
        _replace(content, key, value)
    return config_from(content, str(path))


def config_from(content: Mapping[str, Any], origin: str = "") -> FinetuneConfig:
    """Return the configuration that nested mappings of plain values describe.

    Args:
        content: As in the YAML file.
        origin: Named in errors: where the content comes from.

    Raises:
        ConfigurationError: An unknown key, a value of another type or out of range.
    """
    try:
        return _fill(FinetuneConfig, content, "")
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}: {error}" if origin else str(error)) from error


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Return dotted key -> value of texts such as "optimization.batch_size=8".

    Raises:
        ConfigurationError: A text is not of that form.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigurationError(
                f"--set {text!r} is not of the form key=value, e.g. optimization.batch_size=8."
            )
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {text!r}: the value is no YAML: {error}") from error
    return found


def plain_config(config: object) -> Any:
    """Return a configuration as mappings, lists and plain values: what `config_from` reads."""
    if is_dataclass(config):
        return {f.name: plain_config(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, Mapping):
        return {key: plain_config(value) for key, value in config.items()}
    return [plain_config(item) for item in config] if isinstance(config, tuple) else config


def yaml_text() -> str:
    """Return the content of config/finetune.yaml."""
    return _HEADER + "\n".join(_section(FinetuneConfig, "", 0)) + "\n"


def _replace(content: Any, key: str, value: Any) -> None:
    """Set a dotted key in nested mappings and lists, and make the mappings that are missing."""
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(content, list) and part.isdecimal() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict):
            if content.get(part) is None:
                content[part] = {}
            content = content[part]
        else:
            raise ConfigurationError(f"{key}: the file has nothing that {part!r} could be part of.")
    if isinstance(content, list) and last.isdecimal() and int(last) < len(content):
        content[int(last)] = value
    elif isinstance(content, dict):
        content[last] = value
    else:
        raise ConfigurationError(f"{key}: the file has nothing that {last!r} could be part of.")


def _fill(concern: type[_Config], content: Any, prefix: str) -> _Config:
    if not isinstance(content, Mapping):
        raise ConfigurationError(
            f"{prefix.rstrip('.')} is {content!r}; it must be a section of keys."
        )
    hints = typing.get_type_hints(concern)
    known = {f.name: f for f in fields(cast(Any, concern))}
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            guess = f" (did you mean {prefix}{near[0]}?)" if near else ""
            raise ConfigurationError(
                f"there is no key {prefix}{name}{guess}; config/finetune.yaml lists all of them."
            )
    for name, f in known.items():
        if name not in content and not _has_default(f):
            raise ConfigurationError(f"the key {prefix}{name} is missing.")
    return concern(
        **{
            name: _convert(value, hints[str(name)], prefix + str(name))
            for name, value in content.items()
        }
    )


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return a YAML value as the type that a field has."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _fill(cast(Any, hint), value, where + ".")
    if origin in (Union, types.UnionType):  # only `X | None` occurs
        return None if value is None else _convert(value, arguments[0], where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigurationError(f"{where} is {value!r}; it must be a list.")
        return tuple(_convert(item, arguments[0], f"{where}.{i}") for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where} is {value!r}; it must be a section of keys.")
        return {
            str(key): _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()
        }
    return _convert_scalar(value, hint, where)


def _convert_scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and not isinstance(value, bool):
        if isinstance(value, (int, float)):
            return float(value)
        # YAML 1.1 takes 5e-4, which has no dot, for a text.
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            return float(value)
    elif kind is int and isinstance(value, bool):
        pass
    elif isinstance(value, kind):
        return value
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    raise ConfigurationError(f"{where} is {value!r}; it must be {names[kind]}.")


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _section(concern: type, prefix: str, depth: int) -> list[str]:
    """Return the lines of a dataclass; its own keys come before its sections."""
    hints, meanings = typing.get_type_hints(concern), _meanings(concern)
    own = fields(concern)
    pad = "  " * depth
    lines = []
    for f in sorted(own, key=lambda f: is_dataclass(hints[f.name])):
        name, hint = prefix + f.name, hints[f.name]
        if is_dataclass(hint):
            lines += ["", f"{pad}# {meanings[f.name]}", f"{pad}{f.name}:"]
            lines += _section(cast(type, hint), name + ".", depth + 1)
            continue
        lines += _wrap(f"# {meanings[f.name]}", pad)
        if hint == tuple[SourceConfig, ...]:
            entry = _section(SourceConfig, name + ".", depth + 2)
            entry[0] = entry[0].replace(f"{pad}    #", f"{pad}  - #", 1)
            lines += [f"{pad}{f.name}:", *entry]
        else:
            lines.append(f"{pad}{f.name}: {_yaml_value(_shown(f, name))}")
    return lines


def _shown(f: Field[Any], name: str) -> Any:
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    return f.default if f.default_factory is MISSING else f.default_factory()


def _meanings(concern: type) -> dict[str, str]:
    """Return field -> what the docstring says about it, as one line."""
    text = inspect.cleandoc(concern.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(text).splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
            found[name] = ""
        found[name] = f"{found[name]} {line.strip()}".strip()
    return {name: _as_yaml_says(meaning) for name, meaning in found.items()}


def _as_yaml_says(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text).replace("() =", "[] =").replace("`", "")


def _wrap(text: str, pad: str) -> list[str]:
    """Break a comment into lines."""
    lines, line = [], pad + "#"
    for word in text.split()[1:]:
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = pad + "#"
        line += " " + word
    return [*lines, line]


def _yaml_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_yaml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{}"
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    print(yaml_text(), end="")
