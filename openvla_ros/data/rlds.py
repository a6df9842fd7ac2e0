"""RLDS datasets (TensorFlow Datasets folders of TFRecord files) as episodes, without TensorFlow.

One record is one episode. All records are read once when the dataset is opened, one at a time, so
that a damaged one is known before anything is evaluated; pictures are decoded when asked for, as
TensorFlow decodes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.data.cameras import choose_camera, decode_picture, of_one_size
from openvla_ros.data.episode import Episode
from openvla_ros.data.oxe_transforms import OxeTransform, named_transform
from openvla_ros.data.rlds_layout import (
    ACTION,
    OBSERVATION,
    STEPS,
    RldsLayout,
    layout_from_example,
    layout_from_file,
)
from openvla_ros.data.steps import (
    equal_runs,
    even_stamps,
    require_finite,
    require_instruction,
    require_rate,
)
from openvla_ros.data.tfrecord import (
    Feature,
    RecordPlace,
    find_records,
    parse_example,
    read_record,
)
from openvla_ros.errors import ConfigurationError

FEATURES, DATASET_INFO = "features.json", "dataset_info.json"
#: Datasets whose steps/observation/state is x y z roll pitch yaw gripper of the end effector; in
#: others the same name may mean joint angles.
#: Source: openvla @ c8f03f4, rlds/oxe/transforms.py, bridge_orig_dataset_transform.
POSE_STATES = frozenset({"bridge_dataset", "bridge_orig"})
# <dataset>-<split>.tfrecord-<shard>-of-<shards>
_SHARD = re.compile(r"(?P<dataset>.+)-(?P<split>[^-]+)\.tfrecord-(?P<index>\d{5})-of-(?P<of>\d{5})")


def rlds_episodes(
    folder_or_file: Path,
    camera: str = "",
    *,
    rate_hz: float | None = None,
    pose_key: str = "",
    keep_unlabelled: bool = False,
    transform: str = "",
    jpeg_as_tensorflow: bool = True,
) -> list[Episode]:
    """Return the episodes of an RLDS dataset; where the task changes, another episode begins.

    Args:
        folder_or_file: Folder with features.json and *.tfrecord* (all its splits are read), or one
            TFRecord file.
        camera: Feature of a step's observation, such as "image_0"; "" = that of the transform, or
            the only one, or "primary". A transform with two, as DROID's, takes one or the other of
            them in each episode; which, depends on the name of the episode alone.
        rate_hz: Steps per second; RLDS does not store it. None = the rate that is published for a
            dataset of this name.
        pose_key: Feature of the observation that holds x y z [m] roll pitch yaw [rad] gripper of
            the end effector. "" = "state" where it is known to be that, else there are no states.
        keep_unlabelled: Return steps whose instruction is empty too, instead of refusing them.
        transform: How the features of a step become OpenVLA's seven numbers, by the name of its
            dataset in `oxe_transforms.TRANSFORMS`; "" = `action` as it is stored. Steps to which
            the transform gives no action are left out.
        jpeg_as_tensorflow: Decode JPEG bit for bit as TensorFlow does, as OpenVLA was trained;
            False = as every other reader and the node do.

    Raises:
        ConfigurationError: Not an RLDS dataset, incomplete or damaged, an unknown camera or
            transform, an unknown rate, an empty instruction, or an action that is not finite.
    """
    chosen = named_transform(transform) if transform else None
    files = _record_files(folder_or_file)
    folder = files[0].parent
    dataset = _dataset_name(folder, files)
    places = [(path, find_records(path)) for path in files]
    first = next((found[0] for _, found in places if found), None)
    if first is None:
        raise ConfigurationError(f"{folder_or_file} holds no episodes.")
    _require_counts(folder, {path.name: len(found) for path, found in places})
    parts = tuple(STEPS + name for name in chosen.features) if chosen else (ACTION,)
    instruction = STEPS + chosen.instruction if chosen and chosen.instruction else ""
    if (folder / FEATURES).exists():
        layout = layout_from_file(folder / FEATURES, parts, instruction)
    else:
        example = parse_example(read_record(first), first)
        layout = layout_from_example(example, first.path, parts, instruction)
    reader = _Reader(
        source=str(folder_or_file),
        layout=layout,
        parts=parts,
        transform=chosen,
        cameras=_chosen_cameras(layout, camera, chosen, str(folder)),
        rate_hz=_rate(rate_hz, dataset, transform, str(folder)),
        pose=_pose_features(layout, pose_key, dataset, folder, chosen),
        keep_unlabelled=keep_unlabelled,
        jpeg_as_tensorflow=jpeg_as_tensorflow,
    )
    return [
        episode
        for path, found in places
        for index, place in enumerate(found)
        for episode in reader.episodes(place, _record_name(path, index))
    ]


@dataclass(frozen=True)
class _Reader:
    """How the records of one dataset become episodes."""

    source: str
    layout: RldsLayout
    parts: tuple[str, ...]
    transform: OxeTransform | None
    cameras: tuple[str, ...]
    rate_hz: float
    pose: tuple[str, ...]
    keep_unlabelled: bool
    jpeg_as_tensorflow: bool

    def episodes(self, place: RecordPlace, name: str) -> list[Episode]:
        """The episodes of one record: one per run of the same instruction."""
        where = f"{place.path}, episode {name}"
        features = parse_example(read_record(place), place)
        # Any one of them, and the same one always: part of what the pictures of an episode are.
        drawn = hashlib.sha256(name.encode()).digest()[0]
        camera = self.cameras[drawn % len(self.cameras)]
        steps = len(self._feature(features, camera, where).byte_strings())
        if steps == 0:
            raise ConfigurationError(f"{where} has no images in {camera}.")
        actions = self._actions(features, steps, where)
        states = [self._vectors(features, name, steps, where) for name in self.pose]
        instructions = self._instructions(features, steps, where)
        kept = np.flatnonzero(np.isfinite(actions).all(axis=1))
        size = self.layout.cameras[camera]
        found = []
        runs = equal_runs([instructions[step] for step in kept])
        for part, (start, end) in enumerate(runs):
            chosen = kept[start:end]
            instruction = instructions[chosen[0]]
            if not self.keep_unlabelled:
                require_instruction(instruction, where)
            found.append(
                Episode(
                    name=name if len(runs) == 1 else f"{name}_part_{part:03d}",
                    source=self.source,
                    instruction=instruction,
                    rate_hz=self.rate_hz,
                    stamps_ns=even_stamps(chosen, self.rate_hz),
                    actions=actions[chosen],
                    open_images=_Images(place, camera, size, chosen, self.jpeg_as_tensorflow),
                    states=np.column_stack(states)[chosen] if states else None,
                )
            )
        return found

    def _actions(self, features: Mapping[str, Feature], steps: int, where: str) -> np.ndarray:
        """(T, n) float64; a row of NaN where the transform gives no action."""
        vectors = [self._vectors(features, name, steps, where) for name in self.parts]
        if self.transform is None:
            return vectors[0]
        return self.transform.actions(*vectors, where=where).astype(np.float64)

    def _feature(self, features: Mapping[str, Feature], name: str, where: str) -> Feature:
        if name not in features:
            raise ConfigurationError(f"{where} lacks the feature {name!r}, which others have.")
        return features[name]

    def _vectors(
        self, features: Mapping[str, Feature], name: str, steps: int, where: str
    ) -> np.ndarray:
        """(T, n) float64 of a feature, n as the dataset says."""
        feature = self._feature(features, name, where)
        # Flags such as "open_gripper" are stored as integers; no plain vector is.
        is_flag = feature.kind == "int64" and name not in self.layout.vectors
        numbers = feature.integers() if is_flag else feature.floats()
        stated = self.layout.vectors.get(name)
        length = stated or len(numbers) // steps
        if length == 0 or len(numbers) != steps * length:
            raise ConfigurationError(
                f"{where}: {name} holds {len(numbers)} numbers for {steps} steps"
                + (f" of {length}." if stated else ".")
            )
        return require_finite(numbers.reshape(steps, length), name.rpartition("/")[2], where)

    def _instructions(self, features: Mapping[str, Feature], steps: int, where: str) -> list[str]:
        feature = self._feature(features, self.layout.instruction, where)
        if feature.kind == "int64" and self.transform and self.transform.instruction:
            return _texts_of_codes(feature.integers(), steps, f"{where}: {feature.name}")
        stored = feature.byte_strings()
        if len(stored) != steps:
            raise ConfigurationError(
                f"{where}: {self.layout.instruction} has {len(stored)} texts for {steps} steps."
            )
        try:
            return [bytes(text).decode("utf-8") for text in stored]
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{where}: an instruction is no UTF-8 ({error}).") from error


@dataclass(frozen=True)
class _Images:
    """Some steps (T,) of one record, as one camera saw them; called, it reads anew."""

    place: RecordPlace
    camera: str
    size: tuple[int, int] | None
    steps: np.ndarray
    as_tensorflow: bool

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB, one at a time; the record is held as it is stored."""
        features = parse_example(read_record(self.place), self.place)
        pictures = features[self.camera].byte_strings()
        decoded = (
            decode_picture(pictures[step], as_tensorflow=self.as_tensorflow) for step in self.steps
        )
        where = f"{self.place.path} at byte {self.place.start}, {self.camera}"
        return of_one_size(decoded, self.size, where)


def _chosen_cameras(
    layout: RldsLayout, camera: str, transform: OxeTransform | None, where: str
) -> tuple[str, ...]:
    wanted = [camera]
    if transform and not camera:
        of_transform = (transform.camera, transform.other_camera)
        wanted = [OBSERVATION + name for name in of_transform if name]
    return tuple(choose_camera(tuple(layout.cameras), name, where) for name in wanted)


def _record_files(folder_or_file: Path) -> list[Path]:
    if folder_or_file.is_file():
        return [folder_or_file]
    files = sorted(p for p in folder_or_file.glob("*.tfrecord*") if p.is_file())
    if not files:
        raise ConfigurationError(
            f"{folder_or_file} holds no *.tfrecord* files. Name the folder of one version of the "
            "dataset, such as bridge_dataset/1.0.0."
        )
    for path in files:
        shard = _SHARD.fullmatch(path.name)
        missing = [n for n in _sibling_names(shard) if not (folder_or_file / n).exists()]
        if missing:
            raise ConfigurationError(
                f"{folder_or_file} is incomplete: {missing[0]} is missing ({len(missing)} files in "
                "all). Fetch them, or name single files."
            )
    return files


def _sibling_names(shard: re.Match[str] | None) -> list[str]:
    """The names of all the files of a split."""
    if shard is None:
        return []
    stem, total = f"{shard['dataset']}-{shard['split']}.tfrecord", int(shard["of"])
    return [f"{stem}-{index:05d}-of-{total:05d}" for index in range(total)]


def _record_name(path: Path, index: int) -> str:
    """The name of an episode, unique in its dataset: "train_00000_000003"."""
    shard = _SHARD.fullmatch(path.name)
    stem = f"{shard['split']}_{shard['index']}" if shard else re.sub(r"[^\w.-]", "_", path.name)
    return f"{stem}_{index:06d}"


def _dataset_name(folder: Path, files: list[Path]) -> str:
    """The name of the dataset, or "" where nothing says it."""
    information = _dataset_info(folder)
    if "name" in information:
        return str(information["name"])
    shard = _SHARD.fullmatch(files[0].name)
    return shard["dataset"] if shard else ""


def _require_counts(folder: Path, counts: Mapping[str, int]) -> None:
    """Return when every file has the episodes that dataset_info.json lists for it."""
    try:
        listed = {
            str(split["name"]): [int(n) for n in split["shardLengths"]]
            for split in _dataset_info(folder).get("splits", [])
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{folder / DATASET_INFO}: its list of splits is malformed ({error!r})."
        ) from error
    for name, count in counts.items():
        shard = _SHARD.fullmatch(name)
        lengths = listed.get(shard["split"]) if shard else None
        if shard is None or lengths is None:
            continue
        index = int(shard["index"])
        expected = lengths[index] if index < len(lengths) else 0
        if count != expected:
            raise ConfigurationError(
                f"{folder / name} has {count} episodes, and {DATASET_INFO} lists {expected}: the "
                "file was cut short or belongs to another dataset. Fetch it again."
            )


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / DATASET_INFO
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must be a JSON object.")
    return content


def _rate(given: float | None, dataset: str, transform: str, where: str) -> float:
    """Steps per second: what the user says, or is published for the dataset or its transform."""
    if given is None and transform and load_action_spec(dataset).action_hz is None:
        dataset, given = transform, named_transform(transform).rate_hz
    return require_rate(given, dataset, where)


def _pose_features(
    layout: RldsLayout, key: str, dataset: str, folder: Path, transform: OxeTransform | None
) -> tuple[str, ...]:
    """Names of the vectors that together are the pose of the end effector; () when unknown."""
    vectors = [name for name in layout.vectors if name.startswith(OBSERVATION)]
    if key:
        name = OBSERVATION + key.removeprefix(OBSERVATION)
        if name not in vectors:
            listed = ", ".join(v.removeprefix(OBSERVATION) for v in vectors) or "none"
            raise ConfigurationError(
                f"{folder}: pose_key {key!r} is no vector of a step: {listed}."
            )
        return (name,)
    if transform is not None:
        names = tuple(STEPS + name for name in transform.pose)
    else:
        names = (OBSERVATION + "state",) if dataset in POSE_STATES else ()
    return names if all(name in vectors for name in names) else ()


def _texts_of_codes(codes: np.ndarray, steps: int, where: str) -> list[str]:
    """A text per step of Unicode numbers, each as long as the others; 0 ends it."""
    try:
        rows = codes.reshape(steps, -1)
        texts = ["".join(map(chr, row)).partition("\0")[0] for row in rows]
        "".join(texts).encode()  # surrogates are no text
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{where}: its {len(codes)} numbers are no {steps} texts ({error})."
        ) from error
    return texts
