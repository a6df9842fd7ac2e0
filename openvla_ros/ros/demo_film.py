"""A demo as a film: every picture with the instruction below it. GIF by Pillow, MP4 by PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from openvla_ros.evaluation.pictures.drawing import BAD, CARD, FAINT, GOOD, INK, fit, font
from openvla_ros.ros.demo_episode import Track

BAR_PIXELS = 58
MARGIN_PIXELS = 12
PALETTE_HALF = 128  # a GIF has 256 colours
COLOUR_STEP = 8  # colours closer than this count as one
PALETTE_FRAMES = 12
LAST_S = 1.2  # how long the outcome of an instruction stays
MOST_BYTES = 3_000_000  # a GIF beyond this is made smaller: a README shall load fast
#: Every how many-th picture, and at which scale: the first that is small enough is taken.
REDUCTIONS = ((1, 1.0), (2, 1.0), (2, 0.75), (3, 0.5))


@dataclass(frozen=True)
class FilmFrame:
    """One picture of a film, and for how many seconds it is shown."""

    picture: Image.Image
    duration_s: float


def film_frames(tracks: Sequence[Track]) -> list[FilmFrame]:
    """Return the frames of all instructions, one after another, at the pace of simulated time."""
    frames = []
    for track in tracks:
        for number, (time_s, jpeg) in enumerate(track.views):
            is_last = number + 1 == len(track.views)
            shown_s = LAST_S if is_last else track.views[number + 1][0] - time_s
            frames.append(FilmFrame(_captioned(track, time_s, jpeg), shown_s))
    return frames


def write_gif(frames: Sequence[FilmFrame], path: Path, most_bytes: int = MOST_BYTES) -> None:
    """Write an endless GIF; it gets fewer and smaller frames until it fits `most_bytes`."""
    for every, scale in REDUCTIONS:
        _write_gif(_thinned(frames, every), scale, path)
        if path.stat().st_size <= most_bytes:
            return


def write_mp4(frames: Sequence[FilmFrame], path: Path) -> str:
    """Write a film that browsers play (H.264); return why that is not possible here, or ""."""
    try:
        import av
    except ImportError:
        return "no MP4: it needs PyAV (pip install '.[lerobot]' in the folder of openvla_ros)"
    width, height = (side // 2 * 2 for side in frames[0].picture.size)  # H.264 wants even sides
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "20"}
            for frame in frames:
                picture = np.asarray(frame.picture.crop((0, 0, width, height)))
                for _ in range(max(1, round(25 * frame.duration_s))):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        path.unlink(missing_ok=True)
        return f"no MP4: PyAV cannot write H.264 here ({error})"
    return ""


def _captioned(track: Track, time_s: float, jpeg: bytes) -> Image.Image:
    """Return the picture with the instruction, the time and the outcome below it."""
    picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
    width, height = picture.size
    framed = Image.new("RGB", (width, height + BAR_PIXELS), CARD)
    framed.paste(picture)
    draw = ImageDraw.Draw(framed)
    left, top = MARGIN_PIXELS, height + 5
    words = f"“{track.episode.instruction}”"
    draw.text((left, top), fit(draw, words, 20, width - 2 * left), INK, font=font(20))
    is_over = time_s >= track.episode.duration_s - 1e-3
    if is_over and track.episode.task is not None:
        colour = GOOD if track.episode.done_s is not None else BAD
        draw.text((left, top + 28), track.episode.outcome, colour, font=font(15))
    else:
        draw.text((left, top + 28), f"{time_s:.1f} s", FAINT, font=font(15))
    return framed


def _thinned(frames: Sequence[FilmFrame], every: int) -> list[FilmFrame]:
    groups = [frames[i : i + every] for i in range(0, len(frames), every)]
    return [FilmFrame(g[-1].picture, sum(f.duration_s for f in g)) for g in groups]


def _write_gif(frames: Sequence[FilmFrame], scale: float, path: Path) -> None:
    pictures = [frame.picture for frame in frames]
    if scale != 1.0:
        size = tuple(round(scale * side) for side in pictures[0].size)
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    palette = _palette(pictures)
    # One palette and no dithering: what does not move stays the same, and costs nothing.
    drawn = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    drawn[0].save(
        path,
        save_all=True,
        append_images=drawn[1:],
        # GIF counts hundredths of a second.
        duration=[max(20, 10 * round(100 * frame.duration_s)) for frame in frames],
        loop=0,
        disposal=1,
        optimize=False,
    )


def _palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return a picture with the palette that all share.

    Half of it is for what covers much, the shades of the table, and half for every colour that
    there is: a block covers so little that its colour would be mixed with others.
    """
    chosen = pictures[:: max(1, len(pictures) // PALETTE_FRAMES)]
    pixels = np.concatenate([np.asarray(picture).reshape(-1, 3) for picture in chosen])
    every = np.unique(pixels // COLOUR_STEP, axis=0) * COLOUR_STEP + COLOUR_STEP // 2
    colours: list[int] = []
    for sample in (pixels, every):
        picture = Image.fromarray(sample.astype(np.uint8)[None])
        colours += (picture.quantize(PALETTE_HALF).getpalette() or [])[: 3 * PALETTE_HALF]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette
