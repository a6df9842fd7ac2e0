"""What the steps of an RLDS dataset hold: from its features.json, else from its first record.

TFDS flattens nested features into names such as "steps/observation/image_0", and the steps of one
episode into one list each.
Source: tensorflow_datasets @ v4.9.4, core/features/feature.proto and features.json as it writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openvla_ros.data.cameras import JPEG, PNG
from openvla_ros.data.tfrecord import Feature
from openvla_ros.errors import ConfigurationError

STEPS, OBSERVATION = "steps/", "steps/observation/"
ACTION = "steps/action"
#: Where datasets keep the task, in the order in which it is looked for.
INSTRUCTIONS = tuple(
    place + name
    for name in ("language_instruction", "natural_language_instruction")
    for place in (STEPS, OBSERVATION)
)


@dataclass(frozen=True)
class RldsLayout:
    """Names of features of one step, and their sizes.

    Attributes:
        cameras: Name of each camera's feature to height and width, or None where it is not fixed.
        vectors: Name of each feature that is a vector of floats to its length, or None where the
            dataset does not say it.
        instruction: Name of the feature that holds the task.
    """

    cameras: Mapping[str, tuple[int, int] | None]
    vectors: Mapping[str, int | None]
    instruction: str


def layout_from_file(
    path: Path, parts: Sequence[str] = (ACTION,), instruction: str = ""
) -> RldsLayout:
    """Return what a features.json says.

    Args:
        path: The file.
        parts: Features that the actions are made of; when it is `ACTION` alone, that must be one
            vector of floats.
        instruction: Feature that holds the task; "" = the first of `INSTRUCTIONS` that is there.

    Raises:
        ConfigurationError: Not a features.json, or without these.
    """
    try:
        leaves = dict(_leaves(json.loads(path.read_text(encoding="utf-8")), ""))
        cameras = {
            name: _image_size(leaf["image"]) for name, leaf in leaves.items() if _is_image(leaf)
        }
        vectors = {name: n for name, leaf in leaves.items() if (n := _vector_length(leaf))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is not a features.json of TensorFlow Datasets 4 "
            f"({type(error).__name__}: {error})."
        ) from error
    return _checked(path, leaves, RldsLayout(cameras, vectors, instruction), parts)


def layout_from_example(
    features: Mapping[str, Feature],
    path: Path,
    parts: Sequence[str] = (ACTION,),
    instruction: str = "",
) -> RldsLayout:
    """Return what one record shows, for files without a features.json.

    Args:
        features: Of the record.
        path: Its file, for errors.
        parts: As in `layout_from_file`.
        instruction: As in `layout_from_file`.

    Raises:
        ConfigurationError: It holds no actions or no task.
    """
    cameras: dict[str, tuple[int, int] | None] = {}
    vectors: dict[str, int | None] = {}
    for name, feature in features.items():
        if feature.kind == "float":
            vectors[name] = None
        elif feature.kind == "bytes":
            first = next(iter(feature.byte_strings()), b"")  # a list may be empty
            if bytes(first[:8]).startswith((JPEG, PNG)):
                cameras[name] = None
    return _checked(path, features, RldsLayout(cameras, vectors, instruction), parts)


def _checked(
    path: Path, names: Mapping[str, Any], layout: RldsLayout, parts: Sequence[str]
) -> RldsLayout:
    """The layout with the name of the instruction that is there."""
    listed = ", ".join(sorted(name for name in names if name.startswith(STEPS))) or "nothing"
    if tuple(parts) == (ACTION,) and ACTION not in layout.vectors:
        raise ConfigurationError(
            f"{path}: {ACTION} must be one vector of float32 per step, such as x y z roll pitch "
            f"yaw gripper. A step holds: {listed}. Convert the dataset to this form, or name the "
            "transform of its dataset."
        )
    missing = [name for name in parts if name not in names]
    if missing:
        raise ConfigurationError(
            f"{path}: {', '.join(missing)}: the transform needs it, and it is not there. A step "
            f"holds: {listed}. Name the transform of this dataset, or none."
        )
    choices = (layout.instruction,) if layout.instruction else INSTRUCTIONS
    instruction = next((name for name in choices if name in names), None)
    if instruction is None:
        raise ConfigurationError(
            f"{path}: no instruction; one of {', '.join(choices)} is needed. "
            f"A step holds: {listed}."
        )
    return replace(layout, instruction=instruction)


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Flat name and description of each feature that is stored as one list."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name)
    elif "sequence" in node and prefix == STEPS.rstrip("/"):
        yield from _leaves(node["sequence"]["feature"], prefix)
    elif "pythonClassName" in node:
        yield prefix, node
    else:
        raise KeyError("pythonClassName")


def _is_image(leaf: Mapping[str, Any]) -> bool:
    """Whether a feature is a colour picture, stored as JPEG or PNG."""
    image = leaf.get("image")
    if not image:
        return False
    dimensions = image["shape"].get("dimensions", [])
    return image["dtype"] == "uint8" and len(dimensions) == 3 and dimensions[2] == "3"


def _image_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = (int(side) for side in image["shape"]["dimensions"][:2])
    return (height, width) if height > 0 and width > 0 else None


def _vector_length(leaf: Mapping[str, Any]) -> int | None:
    tensor = leaf.get("tensor", {})
    dimensions = tensor.get("shape", {}).get("dimensions", [])
    is_plain = tensor.get("dtype") in ("float32", "float64")
    is_plain = is_plain and tensor.get("encoding", "none") == "none"
    return int(dimensions[0]) if is_plain and len(dimensions) == 1 else None
