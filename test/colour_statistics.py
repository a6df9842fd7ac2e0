"""Colour statistics of real BridgeData, as `openvla_ros/resources/colour_statistics.yaml` has them.

    python test/colour_statistics.py

writes the file from the 100 frames (100 episodes, 100 scenes) and prints how far recordings that
were not used for it (the three cameras of the Octo episodes, 20 videos) are from the limit, as they
are and with red and blue swapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from bridge_episodes import WHY_NOT, octo_episodes
from PIL import Image

from openvla_ros.evaluation.audit.pictures import PictureFacts, look_at, measure_colours
from openvla_ros.messages import bgr_to_rgb
from openvla_ros.ros.frame_sources import shared_data_folder

FILE = Path(__file__).parents[1] / "openvla_ros" / "resources" / "colour_statistics.yaml"
REVERSED_BELOW = 0.4
VIDEO_STRIDE = 10  # every tenth frame


def frames100() -> list[np.ndarray]:
    data = shared_data_folder()
    assert data is not None, WHY_NOT
    paths = sorted((data / "bridge_v2_frames100" / "images").glob("*.jpg"))
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def videos() -> Iterator[tuple[str, list[np.ndarray]]]:
    data = shared_data_folder()
    assert data is not None, WHY_NOT
    for number, path in enumerate(sorted((data / "bridge_v2_videos").rglob("*.mp4"))):
        capture, frames = cv2.VideoCapture(str(path)), []
        while True:
            is_read, frame = capture.read()
            if not is_read:
                break
            frames.append(bgr_to_rgb(frame))
        yield f"video {number}", frames[::VIDEO_STRIDE]


def warm_share(facts: list[PictureFacts]) -> float:
    colours = measure_colours(facts)
    assert colours is not None
    return colours.warm_share


def upper_by_lower(episodes: list[np.ndarray]) -> float:
    """What a hint at flipped pictures would have to go by."""
    middles = [frames.shape[1] // 2 for frames in episodes]
    upper = np.mean([frames[:, :m].mean() for frames, m in zip(episodes, middles, strict=True)])
    lower = np.mean([frames[:, m:].mean() for frames, m in zip(episodes, middles, strict=True)])
    return float(upper / lower)


def main() -> None:
    colours = measure_colours([look_at([frame]) for frame in frames100()])
    assert colours is not None
    mean, std = (
        ", ".join(f"{value:.1f}" for value in values)
        for values in (colours.channel_mean, colours.channel_std)
    )
    FILE.write_text(
        "# Colours of 100 frames of BridgeData V2 (100 episodes; Walke et al., CoRL 2023, CC BY "
        "4.0), R G B in\n# 0 ... 255. Made by: python test/colour_statistics.py\n"
        f"channel_mean: [{mean}]\nchannel_std: [{std}]\n"
        "# Share of the coloured pixels (channels more than 40 levels apart) with more red than "
        f"blue.\nwarm_share: {colours.warm_share:.3f}\n"
        "# Below it, of 23 recordings that are not among the frames, are only those with swapped "
        f"channels.\nreversed_below: {REVERSED_BELOW}\n",
        encoding="utf-8",
    )
    print(FILE.read_text(encoding="utf-8"))
    recordings = [(f"Octo camera {c}", [e.frames for e in octo_episodes(c)]) for c in range(3)]
    recordings += [(name, [np.stack(frames)]) for name, frames in videos()]
    for name, episodes in recordings:
        straight = warm_share([look_at(frames) for frames in episodes])
        swapped = warm_share([look_at(frames[..., ::-1]) for frames in episodes])
        print(
            f"{name:14s} warm as it is {straight:.2f}, swapped {swapped:.2f}; "
            f"brightness of the upper half / lower half {upper_by_lower(episodes):.2f}"
        )


if __name__ == "__main__":
    main()
