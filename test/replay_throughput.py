"""Frames per second and memory of `openvla-ros replay` on a large bag of raw VGA images.

    python test/replay_throughput.py --episodes 90 --document docs/benchmarks/replay.md   # 8.3 GB

Every measurement is a process of its own. Reading alone says what the bag allows; the policy is a
small one with random weights, so the frames per second are those of a policy that is much
faster than a real one, and reading is tested harder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measured_document import origin, write_section

from openvla_ros.data.bag_file import RAW_IMAGE, BagFile, typestore_for

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 640, 480
STEPS = 100  # of an episode
PERIOD_NS = 200_000_000  # 5 Hz
PAUSE_NS = 3_000_000_000  # between episodes
BEGIN_NS = 1_700_000_000_000_000_000
ARRAY, TEXT = "std_msgs/msg/Float64MultiArray", "std_msgs/msg/String"
TOPICS = """\
rate_hz: 5.0
image: /camera
instruction: {topic: /instruction}
action: {topic: /action}
"""


def write_bag(path: Path, episodes: int, seed: int = 0) -> None:
    """Write episodes of raw VGA frames with an instruction and an action for every frame."""
    random = np.random.default_rng(seed)
    store = typestore_for([RAW_IMAGE, ARRAY, TEXT])
    kinds = store.types
    layout = kinds["std_msgs/msg/MultiArrayLayout"]([], 0)
    bag = BagFile(path, {"/camera": RAW_IMAGE, "/action": ARRAY, "/instruction": TEXT})
    noise = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

    def write(topic: str, kind: str, stamp_ns: int, message: object) -> None:
        bag.write(topic, stamp_ns, bytes(store.serialize_cdr(message, kind)))

    stamp_ns = BEGIN_NS
    for episode in range(episodes):
        write("/instruction", TEXT, stamp_ns, kinds[TEXT](f"put cup {episode % 7} on the plate"))
        for _ in range(STEPS):
            stamp_ns += PERIOD_NS
            action = np.append(random.normal(size=6) * 0.01, float(random.integers(0, 2)))
            write("/action", ARRAY, stamp_ns, kinds[ARRAY](layout, action))
            noise = np.roll(noise, 3, axis=1)
            stamp = kinds["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
            image = kinds[RAW_IMAGE](
                header=kinds["std_msgs/msg/Header"](stamp, "camera"),
                height=HEIGHT,
                width=WIDTH,
                encoding="rgb8",
                is_bigendian=0,
                step=3 * WIDTH,
                data=noise.reshape(-1),
            )
            write("/camera", RAW_IMAGE, stamp_ns, image)
        stamp_ns += PAUSE_NS
    bag.close()


def read_only(bag: Path, topics: Path) -> None:
    """Read every image of a bag as replay does, and nothing else."""
    from openvla_ros.data.sources import open_episodes
    from openvla_ros.data.topics import read_topic_file

    for episode in open_episodes(bag, topics=read_topic_file(topics)):
        for _ in episode.open_images():
            pass


def evaluate(bag: Path, topics: Path, checkpoint: Path, out: Path) -> None:
    """Replay a bag, in this process."""
    from openvla_ros.cli import main

    command = ["replay", str(bag), "--topics", str(topics), "--checkpoint", str(checkpoint)]
    command += ["--unnorm-key", "bridge_orig", "--device", "cpu", "--out", str(out)]
    assert main([*command, "--no-bag", "--no-probes", "--json"]) == 0


def run_here(job: str, bag: str, topics: str, checkpoint: str, out: str) -> None:
    """What a measured process does: print seconds and peak memory as JSON on its last line."""
    begin = time.perf_counter()
    if job == "read":
        read_only(Path(bag), Path(topics))
    else:
        evaluate(Path(bag), Path(topics), Path(checkpoint), Path(out))
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {"seconds": time.perf_counter() - begin, "peak_mb": peak_kib * 1024 / 1e6}
    if job == "replay":
        metrics = json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8"))
        row["policy_ms"] = metrics["variants"]["base"]["metrics"]["latency_ms"]["p50"]
    print(json.dumps(row))


def measured(job: str, bag: Path, folder: Path) -> dict[str, float]:
    """Run one job in a process of its own."""
    out = folder / f"out_{job}_{bag.name}"
    arguments = [str(bag), str(folder / "topics.yaml"), str(folder / "checkpoint"), str(out)]
    done = subprocess.run(
        [sys.executable, __file__, "--job", job, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(episodes: int, size_gb: float, rows: dict[str, dict[str, float]]) -> str:
    """Return the measurements as Markdown."""
    frames = episodes * STEPS
    lines = [
        f"The bag: {size_gb:.1f} GB of MCAP, {frames} raw rgb8 frames of {WIDTH} x {HEIGHT} in "
        f"{episodes} episodes.",
        "",
        "| process | frames | seconds | frames/s | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for name, count in (("read", frames), ("replay, one episode", STEPS), ("replay", frames)):
        row = rows[name]
        rate = count / row["seconds"]
        lines.append(
            f"| {name} | {count} | {row['seconds']:.1f} | {rate:.1f} | {row['peak_mb']:.0f} |"
        )
    grown = rows["replay"]["peak_mb"] - rows["replay, one episode"]["peak_mb"]
    policy_s = rows["replay"]["policy_ms"] * 1e-3 * frames
    share = policy_s / rows["replay"]["seconds"]
    lines += [
        "",
        f"Memory over the one-episode run: {grown:+.0f} MB. An answer takes "
        f"{rows['replay']['policy_ms']:.1f} ms (median), {100 * share:.0f} % of the replay's time "
        "per frame: more than all of it is possible, because the next frame is prepared meanwhile.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=90)
    parser.add_argument("--document", type=Path)
    parser.add_argument("--job", nargs=5, metavar=("JOB", "BAG", "TOPICS", "CHECKPOINT", "OUT"))
    given = parser.parse_args()
    if given.job:
        run_here(*given.job)
        return 0
    from replay_cases import small_checkpoint

    folder = Path(tempfile.mkdtemp(prefix="replay_throughput_"))
    try:
        (folder / "topics.yaml").write_text(TOPICS, encoding="utf-8")
        small_checkpoint(folder / "checkpoint")
        write_bag(folder / "one", 1)
        write_bag(folder / "many", given.episodes)
        size_gb = sum(path.stat().st_size for path in (folder / "many").iterdir()) / 1e9
        rows = {
            "read": measured("read", folder / "many", folder),
            "replay, one episode": measured("replay", folder / "one", folder),
            "replay": measured("replay", folder / "many", folder),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = table(given.episodes, size_gb, rows)
    print(text)
    if given.document:
        import torch

        about = origin(0, f"torch {torch.__version__}, OMP_NUM_THREADS=1")
        write_section(given.document, "throughput", text, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
