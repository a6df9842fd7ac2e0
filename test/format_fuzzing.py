"""Damaged recordings through the readers: `python format_fuzzing.py KIND FIRST COUNT FOLDER`.

A process of its own, so that a native crash, a hang or a memory bomb ends it and is seen. Prints
how many files were refused with an error of ours, and how many gave whole episodes; anything else
ends with a traceback. FOLDER/current names the case that is being read.
"""

from __future__ import annotations

import faulthandler
import io
import json
import resource
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import recording_formats as formats

from openvla_ros.data.sources import open_episodes
from openvla_ros.errors import OpenVLAError
from openvla_ros.ros.frame_sources import shared_data_folder

CASE_S = 60  # one case takes milliseconds; the machine may be busy
MEMORY_BYTES = 8 << 30
RECS = [formats.recording(1, 5), formats.recording(2, 4, "open the drawer")]
Write = Callable[[bytes], None]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to three wounds."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, max(len(out), 1)))
        size = int(rng.integers(1, 64))
        kind = rng.choice(["flip", "cut", "splice", "insert", "delete", "zero", "ones", "random"])
        if kind == "flip" and out:
            out[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == "cut":
            del out[place:]
        elif kind == "splice":
            other = int(rng.integers(0, max(len(out), 1)))
            out[place : place + size] = out[other : other + size]
        elif kind == "insert":
            out[place:place] = rng.bytes(size)
        elif kind == "delete":
            del out[place : place + size]
        else:
            fill = {"zero": bytes(size), "ones": b"\xff" * size}.get(str(kind), rng.bytes(size))
            out[place : place + size] = fill
    return bytes(out)


class Case:
    """One format: whole bytes, where they go when damaged, and what is then opened."""

    def __init__(self, folder: Path, target: str, camera: str = "", rate_hz: float | None = 5.0):
        self.folder, self.path = folder, folder / target
        self.data = self.path.read_bytes()
        self.camera, self.rate_hz = camera, rate_hz

    def damage(self, rng: np.random.Generator) -> None:
        self.path.write_bytes(mutated(self.data, rng))


class ResealedRecord(Case):
    """Damage within a record, whose checksums are made to fit: the parser's turn."""

    def damage(self, rng: np.random.Generator) -> None:
        record = formats.example(formats.rlds_features(RECS[0]))
        other = formats.framed(formats.example(formats.rlds_features(RECS[1])))
        # The pictures are most of it, and the least to parse.
        head = int(rng.choice([400, len(record)]))
        data = mutated(record[:head], rng) + record[head:]
        self.path.write_bytes(formats.framed(data) + other)


class ResealedArchive(Case):
    """Damage within one array of an archive, whose checksums are made to fit."""

    def damage(self, rng: np.random.Generator) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive, zipfile.ZipFile(out, "w") as new:
            chosen = rng.choice(archive.namelist())
            for name in archive.namelist():
                data = archive.read(name)
                new.writestr(name, mutated(data, rng) if name == chosen else data)
        self.path.write_bytes(out.getvalue())


def make_case(kind: str, folder: Path) -> Case:
    """The format that is called `kind`, whole, below `folder`."""
    if kind.startswith("npz"):
        np.savez(folder / "episode_0.npz", **formats.npz_arrays(RECS[0]))
        return (Case if kind == "npz" else ResealedArchive)(folder, "episode_0.npz")
    if kind in ("tfrecord", "tfrecord_resealed", "tfrecord_alone", "features"):
        path = formats.write_rlds(folder, RECS)
        if kind == "tfrecord_alone":
            (folder / "features.json").unlink()
        if kind == "features":
            return Case(folder, "features.json")
        return (Case if kind == "tfrecord" else ResealedRecord)(folder, path.name)
    if kind == "av1":
        shared = shared_data_folder()
        assert shared is not None
        shutil.copytree(shared / "lerobot_v30_bridge", folder, dirs_exist_ok=True)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        return Case(folder, "videos/observation.images.primary/chunk-000/file-000.mp4", "", None)
    version = "v3.0" if kind.endswith("v30") else "v2.1"
    dataset = formats.write_lerobot(folder / "dataset", RECS, version)
    target, camera = {
        "parquet": ("data/chunk-000/episode_000001.parquet", "wrist"),
        "video": (f"videos/chunk-000/{formats.CAMERA}/episode_000001.mp4", "primary"),
        "info": ("meta/info.json", "primary"),
        "tasks": ("meta/tasks.jsonl", "wrist"),
        "parquet_v30": ("data/chunk-000/file-000.parquet", "wrist"),
        "episodes_v30": ("meta/episodes/chunk-000/file-000.parquet", "primary"),
    }[kind]
    return Case(dataset, target, camera, None)


def read_whole(case: Case) -> None:
    """Open and read everything, as a replay would; what is given must be whole."""
    for episode in open_episodes(case.folder, camera=case.camera, rate_hz=case.rate_hz):
        assert np.isfinite(episode.actions).all() and episode.instruction.strip(), episode
        assert (np.diff(episode.stamps_ns) > 0).all() and episode.stamps_ns[0] > 0
        images = 0
        for image in episode.open_images():
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            images += 1
        assert images == len(episode), f"{images} images for {len(episode)} steps"


def main(kind: str, first: int, count: int, folder: Path) -> None:
    """Read `count` damaged files, beginning with number `first`."""
    faulthandler.enable()
    import av  # their memory maps count too

    av.logging.set_level(None)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    work = folder / kind
    work.mkdir(parents=True)
    case = make_case(kind, work)
    read_whole(case)  # undamaged, it must be good
    refused = 0
    for number in range(first, first + count):
        (folder / "current").write_text(f"{kind} {number}")
        case.damage(np.random.default_rng([number, sum(kind.encode())]))
        signal.alarm(CASE_S)
        try:
            read_whole(case)
        except OpenVLAError as error:
            assert len(str(error)) > 20, error
            refused += 1
        signal.alarm(0)
    print(json.dumps({"kind": kind, "files": count, "refused": refused, "whole": count - refused}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
