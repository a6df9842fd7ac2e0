"""What is published about the meaning of each dataset's actions.

The facts live in `resources/action_specs.yaml`, each next to its source, and those of a fine-tune
in `action_specs.json` of its folder. This file knows how to read them and lets a user add what
nobody has published; it never fills a gap by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.types import ActionSpec

USER_SOURCE = "set by the user"
TRAINING_SOURCE = "set by the training run"

#: In the folder of a fine-tune: statistics key -> field -> [value, source], or null.
ACTION_SPECS_FILE = "action_specs.json"

#: Allowed words per field; every other field except `robot` is a number.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "kind": ("eef_delta", "eef_velocity"),
    "translation_frame": ("base", "ee"),
    "rotation_frame": ("base", "ee"),
    "rotation_form": ("euler_xyz", "rotvec"),
}
POSITIVE = ("translation_unit_m", "rotation_unit_rad", "action_hz")
SPEC_FIELDS = tuple(
    field.name for field in fields(ActionSpec) if field.name not in ("unnorm_key", "sources")
)


def load_action_spec(
    unnorm_key: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    stored: Mapping[str, ActionSpec] | None = None,
    source: str = USER_SOURCE,
) -> ActionSpec:
    """Return what is known about the actions behind a statistics key.

    Args:
        unnorm_key: Statistics key of the checkpoint. A key nobody has described (your own
            fine-tune) gives a spec whose fields are all None, except those in `overrides`.
        overrides: Field name to value, given by the user. A value of None is ignored. An override
            replaces a published value, and `sources` then says that the user set it.
        stored: Statistics key -> spec, from the folder of the checkpoint; it comes before what is
            published about a key of the same name.
        source: Of the overrides.

    Raises:
        ConfigurationError: `overrides` names an unknown field or holds an unusable value.
    """
    if stored and unnorm_key in stored:
        spec = stored[unnorm_key]
        values = {name: getattr(spec, name) for name in SPEC_FIELDS}
        sources = dict(spec.sources)
    else:
        known, why = _published_specs().get(unnorm_key, ({}, {}))
        values, sources = dict(known), dict(why)
    for name, value in (overrides or {}).items():
        if value is None:
            continue
        values[name] = _checked(name, value, f"override for {unnorm_key!r}")
        sources[name] = source
    return ActionSpec(unnorm_key=unnorm_key, sources=sources, **values)


def require_spec_fields(values: Mapping[str, Any], where: str) -> None:
    """Return when every entry is a field of an action spec with a usable value; None is one.

    Args:
        values: Field name to value, given by the user.
        where: Named in the error.

    Raises:
        ConfigurationError: One is not.
    """
    for name, value in values.items():
        if value is not None or name not in SPEC_FIELDS:
            _checked(name, value, where)


def read_action_specs(folder: Path) -> dict[str, ActionSpec]:
    """Return statistics key -> spec, from the folder of a fine-tune; {} when it has none.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / ACTION_SPECS_FILE
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {key: _stored_spec(key, row) for key, row in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError, ConfigurationError) as error:
        raise CheckpointError(
            f"{path} cannot be used ({error}). Copy it again from the training run."
        ) from error


def action_specs_json(specs: Mapping[str, ActionSpec]) -> dict[str, Any]:
    """Return the content of `ACTION_SPECS_FILE`, in the form that `read_action_specs` reads."""
    return {
        key: {
            name: None
            if getattr(spec, name) is None
            else [getattr(spec, name), spec.sources.get(name, TRAINING_SOURCE)]
            for name in SPEC_FIELDS
        }
        for key, spec in specs.items()
    }


def _stored_spec(key: str, row: Mapping[str, Any]) -> ActionSpec:
    where = f"{ACTION_SPECS_FILE}: {key}"
    given = {name: entry for name, entry in row.items() if entry is not None}
    values, sources = {}, {}
    for name, entry in given.items():
        if not isinstance(entry, list) or len(entry) != 2:
            raise ConfigurationError(f"{where}.{name} is {entry!r} instead of [value, source]")
        values[name] = _checked(name, entry[0], where)
        sources[name] = str(entry[1])
    return ActionSpec(unnorm_key=key, sources=sources, **values)


def require_agreement(expected: Mapping[str, Any], spec: ActionSpec) -> None:
    """Return when a checkpoint means by its actions what the robot's profile says.

    Args:
        expected: Field name to value, from the profile; what it does not name may be anything.
        spec: Of the checkpoint. A field that nobody has published contradicts nothing; motion asks
            for it anyway.

    Raises:
        ConfigurationError: Some fields differ; all of them are named, with both values.
    """
    differences = [
        f"{name}: this robot expects {value!r}, the actions have {getattr(spec, name)!r} "
        f"({spec.sources.get(name, 'no source')})"
        for name, value in expected.items()
        if getattr(spec, name) is not None and not _is_same(value, getattr(spec, name))
    ]
    if differences:
        raise ConfigurationError(
            f"the profile of this robot and the statistics '{spec.unnorm_key}' contradict each "
            f"other. {'; '.join(differences)}. Choose another unnorm_key, or correct the profile "
            "(delta_frame.*, expected.*) or, if the published value is wrong for your data, "
            "action_spec.* and action_hz."
        )


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, (int, float)):
        return math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(value == other)


def described_keys() -> tuple[str, ...]:
    """Return the statistics keys that `action_specs.yaml` describes, in alphabetical order."""
    return tuple(sorted(_published_specs()))


def parse_action_specs(text: str) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """Return statistics key -> (field -> value, field -> source) from the YAML text.

    Raises:
        ConfigurationError: A field is unknown or absent, a value is unusable, or a value has no
            source.
    """
    document = yaml.safe_load(text)
    named_sources: Mapping[str, str] = document["sources"]
    return {key: _parse_row(key, row, named_sources) for key, row in document["specs"].items()}


def _parse_row(
    key: str, row: Mapping[str, Any], named_sources: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    if set(row) != set(SPEC_FIELDS):
        different = ", ".join(sorted(set(row) ^ set(SPEC_FIELDS)))
        raise ConfigurationError(
            f"action_specs.yaml: {key} must have exactly the fields {', '.join(SPEC_FIELDS)}; "
            f"these differ: {different}."
        )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, entry in row.items():
        if entry is None:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in named_sources:
            raise ConfigurationError(
                f"action_specs.yaml: {key}.{name} is {entry!r}; it must be null or "
                "[value, source] with a source from the list at the top of the file."
            )
        values[name] = _checked(name, entry[0], f"action_specs.yaml: {key}")
        sources[name] = named_sources[entry[1]]
    return values, sources


def _checked(name: str, value: Any, where: str) -> Any:
    if name not in SPEC_FIELDS:
        raise ConfigurationError(
            f"{where}: {name!r} is not a field of an action spec. Fields: {', '.join(SPEC_FIELDS)}."
        )
    if name == "robot":
        return str(value)
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ConfigurationError(
                f"{where}: {name} is {value!r}; allowed: {', '.join(CHOICES[name])}."
            )
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigurationError(f"{where}: {name} is {value!r}; it must be a finite number.")
    if name in POSITIVE and value <= 0:
        raise ConfigurationError(f"{where}: {name} is {value!r}; it must be greater than 0.")
    return float(value)


@lru_cache(maxsize=1)
def _published_specs() -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    resource = resources.files("openvla_ros") / "resources" / "action_specs.yaml"
    return parse_action_specs(resource.read_text(encoding="utf-8"))
