"""What a user may choose about a demo, and how a demo says that it failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openvla_ros.errors import OpenVLAError

CELL, PICTURES = "cell", "pictures"
SCENES = ("auto", CELL, PICTURES)
ARM = "viperx"
SEED = 3


class DemoError(OpenVLAError):
    """The pipeline did not work; the text says which part."""


@dataclass(frozen=True)
class DemoOptions:
    """What the user chose on the command line.

    Attributes:
        scene: One of `SCENES`: the simulated cell, or pictures with a mock robot; "auto" takes
            pictures for a `bag`, and for a checkpoint of the sample pictures' dataset.
        duration_s: In the cell, how long an instruction may take, in simulated seconds; with
            pictures, how long the table is shown. None is 12 and 20.
        instruction: Given in place of the demo's own, or of the recorded ones; "" gives those.
        robot: Arm of the cell.
        seed: Scene of the cell.
        out: Folder for everything; None makes demo_output/<time>.
        rate_hz: Pictures: frames per second of the camera.
        bag: Pictures: recording to play instead of sample data.
        image_topic: Topic in `bag`; "" when it has only one.
        instruction_topic: Topic in `bag`; "" when it has at most one.
        checkpoint: Folder or hub id; "" is the embedded one.
        adapter: PEFT folder or "".
        unnorm_key: Statistics key; "" when the checkpoint has only one.
        quantization: As the node's parameter.
        exactness: As the node's parameter.
        device: As the node's parameter.
        backend: "openvla", or "mock" for machines without torch.
        image_max_age_s: Overrides the demo's choice; None keeps it.
        max_action_age_s: Overrides the demo's choice; None keeps it.
        params_file: Node parameters that replace the demo's.
        load_timeout_s: How long loading may take.
    """

    scene: str = "auto"
    duration_s: float | None = None
    instruction: str = ""
    robot: str = ARM
    seed: int = SEED
    out: Path | None = None
    rate_hz: float = 5.0
    bag: Path | None = None
    image_topic: str = ""
    instruction_topic: str = ""
    checkpoint: str = ""
    adapter: str = ""
    unnorm_key: str = ""
    quantization: str = "none"
    exactness: str = "self"
    device: str = "auto"
    backend: str = "openvla"
    image_max_age_s: float | None = None
    max_action_age_s: float | None = None
    params_file: Path | None = None
    load_timeout_s: float = 1800.0
