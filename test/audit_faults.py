"""Real episodes as the audit takes them, and the same with one fault planted in each.

    python test/audit_faults.py

prints the table of docs/audit.md: what the audit says of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

import bridge_episodes
import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.data.episode import Episode
from openvla_ros.evaluation.audit.audit_report import audit_episodes

RATE_HZ = 5.0
Change = Callable[[Episode], Episode]


@lru_cache(maxsize=3)
def octo_episodes(camera: int = 0) -> tuple[Episode, ...]:
    """The 25 real episode heads of ten steps, as one camera saw them."""
    return tuple(
        make_episode(e.name, e.actions, e.frames, e.states, e.instruction)
        for e in bridge_episodes.octo_episodes(camera)
    )


def make_episode(
    name: str,
    actions: np.ndarray,
    frames: np.ndarray,
    states: np.ndarray | None = None,
    instruction: str = "put carrot on plate",
    rate_hz: float = RATE_HZ,
) -> Episode:
    stamps = np.rint(np.arange(len(actions)) * 1e9 / rate_hz).astype(np.int64)
    return Episode(
        name, "memory", instruction, rate_hz, stamps, actions, lambda: iter(frames), states
    )


def with_actions(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda episode: replace(episode, actions=change(episode.actions.copy()))


def with_images(change: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]) -> Change:
    return lambda episode: replace(episode, open_images=lambda: change(episode.open_images()))


def scaled(factor: float, axes: slice) -> Change:
    def change(actions: np.ndarray) -> np.ndarray:
        actions[:, axes] *= factor
        return actions

    return with_actions(change)


def shifted(steps: int) -> Change:
    """Actions stored `steps` too late; at the ends nothing was recorded."""

    def change(actions: np.ndarray) -> np.ndarray:
        moved = np.roll(actions, steps, axis=0)
        moved[:steps] = np.nan if steps > 0 else moved[:steps]
        if steps < 0:
            moved[steps:] = np.nan
        return moved

    return with_actions(change)


def inverted_gripper(actions: np.ndarray) -> np.ndarray:
    actions[:, 6] = 1 - actions[:, 6]
    return actions


def swapped_axes(actions: np.ndarray) -> np.ndarray:
    """The operator's x is the robot's y, and his y its -x."""
    actions[:, [0, 1]] = np.stack([actions[:, 1], -actions[:, 0]], axis=1)
    return actions


def idle(actions: np.ndarray) -> np.ndarray:
    """Three of ten steps stand still, one after another."""
    actions[4:7, :6] = 0
    actions[4:7, 6] = actions[3, 6]
    return actions


def frozen(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    first = next(images)
    yield first
    for _ in images:
        yield first.copy()


def bgr(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    return (image[..., ::-1] for image in images)


def jittered(episode: Episode) -> Episode:
    rng = np.random.default_rng(sum(map(ord, episode.name)))
    noise = rng.uniform(-0.06, 0.06, len(episode))  # seconds, of a period of 0.2
    return replace(episode, stamps_ns=episode.stamps_ns + (noise * 1e9).astype(np.int64))


def poses(episode: Episode) -> Episode:
    assert episode.states is not None
    return replace(episode, actions=episode.states[:, :7].copy())


#: Fault to what it does to an episode.
FAULTS: Mapping[str, Change] = {
    "actions ×5": scaled(5.0, slice(0, 6)),
    "actions ÷10": scaled(0.1, slice(0, 6)),
    "translation in mm": scaled(1000.0, slice(0, 3)),
    "rotation in degrees": scaled(float(np.degrees(1)), slice(3, 6)),
    "actions one step late": shifted(1),
    "actions one step early": shifted(-1),
    "y inverted": scaled(-1.0, slice(1, 2)),
    "yaw inverted": scaled(-1.0, slice(5, 6)),
    "frame turned by 90°": with_actions(swapped_axes),
    "poses instead of steps": poses,
    "gripper inverted": with_actions(inverted_gripper),
    "gripper -1 … 1": with_actions(lambda a: np.column_stack([a[:, :6], 2 * a[:, 6] - 1])),
    "gripper in metres": with_actions(lambda a: np.column_stack([a[:, :6], 0.08 * a[:, 6]])),
    "frozen camera": with_images(frozen),
    "BGR": with_images(bgr),
    "30 % idle": with_actions(idle),
    "jittered stamps": jittered,
}


def planted(fault: str, camera: int = 0) -> list[Episode]:
    """The real episodes with one of `FAULTS`."""
    return [FAULTS[fault](episode) for episode in octo_episodes(camera)]


def main() -> None:
    spec = load_action_spec("bridge_orig")
    stats = {"bridge_orig": bridge_episodes.bridge_stats()}
    rows = {f"none, camera {camera}": octo_episodes(camera) for camera in range(3)}
    print("| fault | level | item | value |\n|---|---|---|---|")
    for fault, episodes in [*rows.items(), *((name, planted(name)) for name in FAULTS)]:
        report = audit_episodes(episodes, spec, stats, None)
        for finding in report.findings:
            is_usual = finding.item in ("idle start", "demonstrations")
            if finding.level != "ok" and is_usual == fault.startswith("none"):
                print(f"| {fault} | {finding.level} | {finding.item} | {finding.value} |")


if __name__ == "__main__":
    main()
