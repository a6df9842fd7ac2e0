"""What a fine-tuning run leaves beside its weights, as far as it can be read without torch.

A result is an adapter (adapter_config.json, no config.json) or a whole checkpoint. Both hold
finetune.json, which names the checkpoint that the run started from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from openvla_ros.errors import CheckpointError

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
FINETUNE_FILE = "finetune.json"


@dataclass(frozen=True)
class BaseReference:
    """The checkpoint that a fine-tuning run started from.

    Attributes:
        checkpoint: Folder or hub id.
        revision: Hub commit, or "".
        fingerprint: Of its weights; see `base_reference.weights_fingerprint`.
    """

    checkpoint: str
    revision: str
    fingerprint: str

    def to_dict(self) -> dict[str, str]:
        """Return the form stored under "base" in finetune.json."""
        return asdict(self)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter instead of a whole checkpoint."""
    return (folder / ADAPTER_CONFIG_FILE).exists() and not (folder / CONFIG_FILE).exists()


def read_base_reference(folder: Path) -> BaseReference | None:
    """Return what a result says about its base; None when the folder is not a result.

    Raises:
        CheckpointError: finetune.json is damaged.
    """
    path = folder / FINETUNE_FILE
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["base"]
        fields = {name: stored[name] for name in BaseReference.__dataclass_fields__}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not say which checkpoint this was trained from "
            f"({type(error).__name__}: {error}). Copy the folder again from the training run."
        ) from error
    wrong = {name: value for name, value in fields.items() if not isinstance(value, str)}
    if wrong:
        raise CheckpointError(f"{path}: base must hold texts, not {wrong}.")
    return BaseReference(**fields)
