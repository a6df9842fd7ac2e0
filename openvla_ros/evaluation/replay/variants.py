"""What a replay evaluates: a name, and how its policy is loaded.

A command line names one variant by its options, "base", and others by what differs from it. Another
process loads the same policy from the same variant: it is data and can be pickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import tuned_unnorm_key

if TYPE_CHECKING:
    from openvla_ros.policy import OpenVLAPolicy
    from openvla_ros.types import Policy

BASE = "base"
#: Bytes done, bytes in all, and what is done.
Progress = Callable[[int, int, str], None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # also the name of a folder
_CHOICES: dict[str, tuple[str, ...]] = {
    "quantization": ("none", "fp8", "int8", "int4", "nf4", "bnb_int8"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "exactness": ("self", "hf", "approx"),
}
#: Key of a comparison, and of the node's parameters, to field of `ImageOptions`.
IMAGE_KEYS = {
    "rotate_image_180": "rotate_180",
    "jpeg_round_trip": "jpeg_round_trip",
    "lanczos3": "lanczos3",
    "center_crop": "center_crop",
}
_TEXT_KEYS = ("checkpoint", "adapter", "unnorm_key")
_SWITCH = {"true": True, "false": False}


@dataclass(frozen=True)
class Variant:
    """A policy to evaluate: arguments of `OpenVLAPolicy.from_pretrained`.

    Attributes:
        name: Letters, digits, ".", "_" and "-": it also names a folder.
        checkpoint: Folder or hub id.
        adapter: PEFT adapter folder or hub id, or "".
        quantization: "none", "fp8", "int8", "int4", "nf4" or "bnb_int8".
        dtype: "auto", "float32", "bfloat16" or "float16".
        exactness: "self", "hf" or "approx".
        device: "auto", "cpu", "cuda" or "cuda:N".
        unnorm_key: Statistics key; "" when the checkpoint has one.
        rotate_image_180: Whether the image is turned upside down first; None = as the checkpoint
            says, as for the next three.
        jpeg_round_trip: Whether it goes through JPEG.
        lanczos3: Whether it is resized as RLDS training data was.
        center_crop: Whether the outer 10 % of its area are cut off.

    Raises:
        ConfigurationError: A name or value that is not one of these.
    """

    name: str
    checkpoint: str
    adapter: str = ""
    quantization: str = "none"
    dtype: str = "auto"
    exactness: str = "self"
    device: str = "auto"
    unnorm_key: str = ""
    rotate_image_180: bool | None = None
    jpeg_round_trip: bool | None = None
    lanczos3: bool | None = None
    center_crop: bool | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"The variant name {self.name!r} cannot name a folder; use up to 64 letters, "
                "digits, '.', '_' and '-', a letter or digit first."
            )
        for key, allowed in _CHOICES.items():
            _require_choice(f"variant {self.name!r}: {key}", getattr(self, key), allowed)

    def load(self, progress: Progress | None = None) -> Policy:
        """Return the policy. Takes minutes for a large checkpoint.

        Args:
            progress: Told how far reading the weights is.

        Raises:
            OpenVLAError: The checkpoint, its statistics, the device or a library is not usable.
        """
        from openvla_ros.model.image_options import ImageOptions
        from openvla_ros.policy import OpenVLAPolicy

        added = {field: bool(getattr(self, key)) for key, field in IMAGE_KEYS.items()}
        policy = OpenVLAPolicy.from_pretrained(
            self.checkpoint,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            exactness=self.exactness,
            adapter=self.adapter or None,
            unnorm_key=self.unnorm_key or None,
            image_options=ImageOptions(**added),
            progress=progress,
        )
        self._take_away(policy)
        return policy

    def _take_away(self, policy: OpenVLAPolicy) -> None:
        """Switch off the steps that the checkpoint asks for and this variant does without."""
        images = policy.processor.image_processor
        off = {field: False for key, field in IMAGE_KEYS.items() if getattr(self, key) is False}
        images.options = replace(images.options, **off)

    def described(self) -> dict[str, Any]:
        """Return what makes the policy what it is, as JSON types: a resumed run must have it."""
        return asdict(self)


@dataclass(frozen=True)
class MadeVariant(Variant):
    """A policy that a function makes, for the Python API and tests.

    Attributes:
        make: Returns the policy. Another process needs it as a function of an importable module, or
            as what `functools.partial` makes of one.
    """

    checkpoint: str = ""
    make: Callable[[], Policy] | None = None

    def load(self, progress: Progress | None = None) -> Policy:
        """Return what `make` makes; `progress` is told nothing."""
        assert self.make is not None, f"variant {self.name!r} has no function that makes its policy"
        return self.make()

    def described(self) -> dict[str, Any]:
        """Return the fields, and the function by name, with what `partial` gives it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "make"}
        made_by = getattr(self.make, "func", self.make)
        name = getattr(made_by, "__qualname__", repr(made_by))
        if isinstance(self.make, partial):
            name += f" {self.make.args} {self.make.keywords}"
        return own | {"make": name}


def parse_comparison(text: str, base: Variant) -> Variant:
    """Return the variant of one `--compare NAME:key=value,key=value`; the rest is as in `base`.

    The result of a fine-tuning run on one dataset answers in the units of that one: its key holds,
    unless another is named.

    Raises:
        ConfigurationError: Not of that form, an unknown key, or a value that is not allowed.
    """
    name, colon, assignments = text.partition(":")
    if not colon or not assignments.strip():
        raise ConfigurationError(
            f"--compare {text!r} is not of the form NAME:key=value,key=value. For example: "
            f"--compare int4:quantization=int4. {_allowed_keys()}"
        )
    changes: dict[str, Any] = {}
    for assignment in assignments.split(","):
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ConfigurationError(
                f"--compare {text!r}: {assignment!r} is not key=value. {_allowed_keys()}"
            )
        if key in changes:
            raise ConfigurationError(f"--compare {text!r} gives {key} twice.")
        changes[key] = _parsed_value(f"--compare {text!r}: {key}", key, value)
    if "unnorm_key" not in changes and (tuned := _tuned_key(changes)):
        changes["unnorm_key"] = tuned
    return replace(base, name=name.strip(), **changes)


def require_distinct(variants: Sequence[Variant]) -> None:
    """Return when there is a variant, and no two have one name.

    Raises:
        ConfigurationError: There is none, or a name is taken twice.
    """
    if not variants:
        raise ConfigurationError("There is no variant to evaluate; give at least one.")
    names = [variant.name.lower() for variant in variants]  # a folder each, on any file system
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"Two variants are called {', '.join(twice)}; give each --compare a name of its own "
            f"({BASE!r} is the one that the other options name)."
        )


def _tuned_key(changes: Mapping[str, Any]) -> str:
    """The key of the fine-tuning result that a comparison names, or "".

    Its answers are not meant in the units of the base, whose key the comparison would take over.
    """
    folders = [
        Path(changes[key]).expanduser() for key in ("adapter", "checkpoint") if key in changes
    ]
    return next((key for folder in folders if (key := tuned_unnorm_key(folder))), "")


def _parsed_value(where: str, key: str, value: str) -> Any:
    if key in _CHOICES:
        return _require_choice(where, value, _CHOICES[key])
    if key in IMAGE_KEYS:
        return _SWITCH[_require_choice(where, value, _SWITCH)]
    if key in _TEXT_KEYS:
        if not value and key == "checkpoint":
            raise ConfigurationError(f"{where} is empty; name a folder or hub id.")
        return value
    raise ConfigurationError(f"{where} is not a key that can be compared. {_allowed_keys()}")


def _require_choice(where: str, value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise ConfigurationError(f"{where} is {value!r}; use one of {', '.join(allowed)}.")
    return value


def _allowed_keys() -> str:
    described: Mapping[str, str] = {
        **dict.fromkeys(_TEXT_KEYS, "text"),
        **{key: "|".join(values) for key, values in _CHOICES.items()},
        **dict.fromkeys(IMAGE_KEYS, "true|false"),
    }
    return "Allowed are " + ", ".join(f"{key}={value}" for key, value in described.items()) + "."
