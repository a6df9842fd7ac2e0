"""The order of samples: every step once per epoch, datasets by their probability, from anywhere."""

from __future__ import annotations

import numpy as np

from openvla_ros.training.mixture_order import MixtureOrder


def test_a_dataset_is_gone_through_once_per_epoch_in_a_new_order() -> None:
    _, positions = MixtureOrder(7, [11], [1.0]).take(0, 33)
    epochs = positions.reshape(3, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs.tolist()), epochs
    assert not np.array_equal(epochs[0], epochs[1])


def test_any_part_of_the_order_is_what_the_whole_has_there() -> None:
    """Across the blocks in which datasets are drawn, too."""
    datasets, positions = MixtureOrder(3, [5, 900, 70], [0.2, 0.5, 0.3]).take(0, 200_000)
    for start, count in [(0, 1), (65_530, 20), (131_071, 2), (199_000, 1000), (42, 0)]:
        fresh = MixtureOrder(3, [5, 900, 70], [0.2, 0.5, 0.3])
        some_datasets, some_positions = fresh.take(start, count)
        assert np.array_equal(some_datasets, datasets[start : start + count]), (start, count)
        assert np.array_equal(some_positions, positions[start : start + count]), (start, count)


def test_datasets_appear_as_often_as_their_probability_says() -> None:
    wanted = np.array([0.1, 0.6, 0.3])
    datasets, positions = MixtureOrder(0, [40, 7, 1000], wanted).take(0, 100_000)
    found = np.bincount(datasets) / len(datasets)
    assert np.abs(found - wanted).max() < 0.01, found
    for dataset, size in enumerate((40, 7, 1000)):
        uses = np.bincount(positions[datasets == dataset], minlength=size)
        assert uses.max() - uses.min() <= 1, (dataset, uses.min(), uses.max())


def test_another_seed_is_another_order() -> None:
    orders = [MixtureOrder(seed, [100], [1.0]).take(0, 100)[1].tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_datasets_of_one_size_have_orders_of_their_own() -> None:
    datasets, positions = MixtureOrder(0, [50, 50], [0.5, 0.5]).take(0, 400)
    first, second = (positions[datasets == dataset][:50] for dataset in (0, 1))
    assert sorted(first) == sorted(second) and not np.array_equal(first, second)
