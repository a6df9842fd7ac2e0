"""How far the two ways to decode a JPEG lie apart on recorded frames: `python jpeg_decoders.py`.

The figures in docs/data_formats.md are its output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openvla_ros.data.sources import open_episodes
from openvla_ros.ros.frame_sources import shared_data_folder


def main() -> None:
    data = shared_data_folder()
    assert data is not None, "the recorded data is not on this machine"
    differences = [
        np.abs(as_tensorflow.astype(int) - as_the_node)
        for rlds, npz in zip(
            open_episodes(data / "bridge_octo_tfrecord", camera="image_0", rate_hz=5),
            open_episodes(data / "bridge_octo_debug", camera="image_0", rate_hz=5),
            strict=True,
        )
        for as_tensorflow, as_the_node in zip(rlds.open_images(), npz.open_images(), strict=True)
    ]
    print(
        f"{len(differences)} frames: mean {np.mean(differences):.2f}, "
        f"most {np.max(differences)} grey levels of 255"
    )


if __name__ == "__main__":
    main()
