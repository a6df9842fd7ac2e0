"""Batches depend on the configuration and their number, and are what the deployed policy sees."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_recordings import data_config, load_processor, training_data, write_recordings

from openvla_ros.data.episode import Episode
from openvla_ros.data.frame_store import FrameStore
from openvla_ros.errors import CheckpointError, StorageError, TrainingError
from openvla_ros.model.action_stats import normalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.training import loader
from openvla_ros.training.batch import TrainingBatch
from openvla_ros.training.config import DataConfig
from openvla_ros.training.datasets import open_training_sets
from openvla_ros.training.loader import TrainingData, deployed_options
from openvla_ros.training.step_dataset import Place
from openvla_ros.types import PRIMARY, Observation


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("recordings")
    return write_recordings(base / "first"), write_recordings(base / "second", (3, 8), seed=40)


@pytest.fixture(scope="module")
def config(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return data_config(tmp_path_factory.mktemp("cache"), *folders)


@pytest.fixture(scope="module")
def data(tiny_checkpoint: Path, config: DataConfig) -> TrainingData:
    return training_data(tiny_checkpoint, config)


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> OpenVLAPolicy:
    return OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cpu")


def flat(steps: Sequence[Sequence[TrainingBatch]]) -> list[TrainingBatch]:
    return [batch for step in steps for batch in step]


def require_same(ours: Sequence[TrainingBatch], others: Sequence[TrainingBatch]) -> None:
    assert len(ours) == len(others)
    for number, (one, other) in enumerate(zip(ours, others, strict=True)):
        assert one.origins == other.origins, number
        for name in ("input_ids", "labels", "attention_mask", "pixel_values"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.shape == b.shape, (number, name, a.shape, b.shape)
            assert torch.equal(a, b), (number, name, int((a != b).sum()))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(
    tiny_checkpoint: Path, config: DataConfig, data: TrainingData, workers: int
) -> None:
    with_workers = training_data(tiny_checkpoint, replace(config, workers=workers))
    require_same(flat(list(with_workers.batches(4, 2, 0, 3))), flat(list(data.batches(4, 2, 0, 3))))


def test_batches_do_not_depend_on_where_a_run_starts(data: TrainingData) -> None:
    whole = flat(list(data.batches(5, 1, 0, 12)))
    for start in (1, 7, 11):
        require_same(flat(list(data.batches(5, 1, start, 12))), whole[start:])


def test_two_processes_see_what_one_sees_in_two_passes(data: TrainingData) -> None:
    one = list(data.batches(3, 2, 0, 4))
    ranks = [list(data.batches(3, 1, 0, 4, rank=rank, world_size=2)) for rank in (0, 1)]
    for step in range(4):
        require_same(one[step], [ranks[0][step][0], ranks[1][step][0]])
    alone = list(data.batches(3, 4, 0, 2))
    ranks = [list(data.batches(3, 2, 0, 2, rank=rank, world_size=2)) for rank in (0, 1)]
    for step in range(2):
        taken = [ranks[rank][step][index] for index in (0, 1) for rank in (0, 1)]
        require_same(alone[step], taken)


def test_every_step_is_shown_once_per_epoch(data: TrainingData, tiny_checkpoint: Path) -> None:
    config = replace(data._data, sources=data._data.sources[:1])
    alone = training_data(tiny_checkpoint, config)
    assert alone.steps == 15
    for epoch in range(2):
        shown = [
            (origin.episode, origin.step)
            for batch in flat(list(alone.batches(5, 1, 3 * epoch, 3 * epoch + 3)))
            for origin in batch.origins
        ]
        assert len(set(shown)) == 15, sorted(shown)


def test_sources_are_picked_by_weight_times_steps(
    tiny_checkpoint: Path, config: DataConfig
) -> None:
    """15 steps of weight 1 and 11 of weight 3: 33 of 48 samples are from the second."""
    first, second = config.sources
    data = training_data(
        tiny_checkpoint, replace(config, sources=(first, replace(second, weight=3)))
    )
    datasets, _ = data._order.take(0, 50_000)
    share = float((datasets == 1).mean())
    assert abs(share - 33 / 48) < 0.01, share


def test_held_out_steps_count_for_how_often_a_source_is_picked(
    tiny_checkpoint: Path, config: DataConfig
) -> None:
    """As in the reference, whose weights are by the statistics: 15 and 11 steps."""
    data = training_data(tiny_checkpoint, replace(config, held_out=0.5), seed=7)
    trained = [one.steps for one in data.sets]
    assert abs(trained[0] / sum(trained) - 15 / 26) > 0.02, trained
    share = float((data._order.take(0, 50_000)[0] == 0).mean())
    assert abs(share - 15 / 26) < 0.01, share


def test_augmentation_is_another_each_epoch_and_off_when_it_is_off(
    tiny_checkpoint: Path, config: DataConfig
) -> None:
    def pictures(augmented: bool) -> dict[tuple[str, int], list[torch.Tensor]]:
        used = replace(config, sources=config.sources[:1], image_augmentation=augmented)
        found: dict[tuple[str, int], list[torch.Tensor]] = {}
        for batch in flat(list(training_data(tiny_checkpoint, used).batches(5, 1, 0, 6))):
            for origin, pixels in zip(batch.origins, batch.pixel_values, strict=True):
                found.setdefault((origin.episode, origin.step), []).append(pixels)
        return found

    assert all(not torch.equal(*twice) for twice in pictures(True).values())
    assert all(torch.equal(*twice) for twice in pictures(False).values())


def test_making_batches_draws_nothing_from_the_generator_that_training_uses(
    data: TrainingData,
) -> None:
    """The order of torch's DataLoader used to come from it: a resumed run drew other dropout."""
    before = torch.get_rng_state()
    list(data.batches(2, 1, 0, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_steps_can_be_sent_to_a_process_that_was_not_forked(data: TrainingData) -> None:
    sent = pickle.loads(pickle.dumps(data._training))  # as multiprocessing sends it
    place = Place(number=5, dataset=1, position=2)
    assert torch.equal(sent[place].pixel_values, data._training[place].pixel_values)
    assert sent.reader._processor is None  # a tokenizer takes long to send, and prompts are encoded
    sent._seed += 1
    assert not torch.equal(sent[place].pixel_values, data._training[place].pixel_values)


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("lanczos3", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_evaluation_samples_are_what_the_deployed_policy_is_given(
    tiny_checkpoint: Path,
    policy: OpenVLAPolicy,
    config: DataConfig,
    augmented: bool,
    lanczos3: bool,
    rotated: bool,
) -> None:
    if augmented and not lanczos3:
        return  # refused by DataConfig
    used = replace(
        config, image_augmentation=augmented, lanczos3=lanczos3, rotate_180=rotated, held_out=0.3
    )
    sets = open_training_sets(used, 7)
    data = TrainingData(sets, load_processor(tiny_checkpoint), used, 7, ActionTokenizer())
    policy.processor.image_processor.options = deployed_options(used)
    for name in ("training", "held_out"):
        slice_ = data.slice(name, 6)
        assert len(slice_) == 6
        for one in slice_:
            origin = one.sample.origin
            episode, step = recorded(sets, origin.episode, origin.dataset), origin.step
            image = list(episode.open_images())[step]
            prepared = policy.prepare(Observation({PRIMARY: image}, episode.instruction)).prepared
            given = prepared.inputs
            assert torch.equal(one.sample.pixel_values, given.pixel_values[0])
            prompt = given.input_ids[0]
            assert torch.equal(one.sample.input_ids[: len(prompt)], prompt)
            stats = next(s.stats for s in sets if s.name == origin.dataset)
            ids = ActionTokenizer().encode(normalize(episode.actions, stats))
            assert np.array_equal(one.token_ids, ids[step])
            assert one.sample.input_ids[len(prompt) :].tolist() == [*ids[step], 2]
            if step == 0:
                assert one.previous_token_ids is None
            else:
                assert np.array_equal(one.previous_token_ids, ids[step - 1])


def recorded(sets: Sequence, name: str, dataset: str) -> Episode:
    chosen = next(one for one in sets if one.name == dataset)
    return next(e for e in [*chosen.episodes, *chosen.held_out] if e.name == name)


def test_slices_are_spread_over_all_steps_and_no_longer_than_what_is_there(
    data: TrainingData,
) -> None:
    origins = [one.sample.origin for one in data.slice("training", 13)]
    assert len(set(origins)) == 13
    assert {origin.dataset for origin in origins} == {"first", "second"}
    assert len(data.slice("training", 1000)) == data.steps == 26
    assert data.slice("held_out", 5) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_pictures_are_made_once(
    tiny_checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    data = training_data(tiny_checkpoint, data_config(tmp_path, folders[0], workers=workers))
    told: list[tuple[int, int]] = []
    data.prepare(lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    data.prepare(lambda done, of: told.append((done, of)))
    assert len(told) == 3
    alone = training_data(tiny_checkpoint, data_config(tmp_path / "alone", folders[0]))
    alone.prepare()
    files = {path.name: path.read_bytes() for path in (tmp_path / "frames").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "alone/frames").iterdir()}


def killed_by_the_system(*_: object) -> None:
    """What the system does to a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told(
    tiny_checkpoint: Path, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = training_data(tiny_checkpoint, replace(config, workers=2, cache_folder=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(FrameStore, "frames", killed_by_the_system)
        with pytest.raises(TrainingError, match=r"process .* was killed, .* memory"):
            data.prepare()
        with pytest.raises(TrainingError, match=r"process .* was killed, .* memory"):
            list(data.batches(2, 1, 0, 2))
    data.prepare()
    assert len(list(data.batches(2, 1, 0, 2))) == 2


def test_too_little_shared_memory_is_told_before_workers_start(
    tiny_checkpoint: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers have 64 MiB of it: workers died of a bus error."""
    monkeypatch.setattr(loader, "_SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    data = training_data(tiny_checkpoint, replace(config, workers=4))
    needed = 9 * 16 * 6 * 224 * 224 * 4
    with pytest.raises(StorageError, match=f"take {needed:,} bytes .* 67,108,864 free"):
        next(data.batches(16, 1, 0, 1))


def test_a_tokenizer_without_padding_is_refused(tiny_checkpoint: Path, config: DataConfig) -> None:
    processor = load_processor(tiny_checkpoint)
    processor.tokenizer.pad_token = None
    with pytest.raises(CheckpointError, match="no pad token"):
        TrainingData(open_training_sets(config, 7), processor, config, 7, ActionTokenizer())
