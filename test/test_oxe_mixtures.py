"""Named mixtures, and where their datasets lie on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from openvla_ros.data.oxe_mixtures import MIXTURES, dataset_folder, named_mixture
from openvla_ros.errors import ConfigurationError


def test_sizes_of_the_mixtures() -> None:
    sizes = {name: len(named_mixture(name)) for name in MIXTURES}
    assert sizes == {
        "bridge": 1,
        "bridge_rt_1": 2,
        "rtx": 10,
        "rtx_franka": 23,
        "oxe_magic_soup": 23,
        "oxe_magic_soup_plus": 27,
        "oxe_magic_soup_plus_minus": 25,
    }


def test_each_dataset_comes_once_with_its_first_weight() -> None:
    for name in MIXTURES:
        datasets = [dataset for dataset, _ in named_mixture(name)]
        assert len(datasets) == len(set(datasets))
    franka = dict(named_mixture("rtx_franka"))
    assert franka["taco_play"] == 2.0 and franka["berkeley_cable_routing"] == 3.0
    assert franka["austin_buds_dataset_converted_externally_to_rlds"] == 3.0


def test_the_mixtures_that_the_published_models_saw() -> None:
    soup, plus, minus = (
        dict(named_mixture(f"oxe_magic_soup{end}")) for end in ("", "_plus", "_plus_minus")
    )
    added = {"bc_z": 0.2, "fmb_dataset": 1.0, "dobbe": 0.2, "droid": 0.06}
    assert plus == {**soup, **added}
    assert plus["fractal20220817_data"] == 0.54087122203 and plus["kuka"] == 0.8341046294
    assert minus == {
        **{name: plus[name] for name in plus if name not in ("language_table", "droid")},
        "fractal20220817_data": 1.0,
    }


def test_any_other_name_is_one_dataset() -> None:
    assert named_mixture("libero_spatial_no_noops") == (("libero_spatial_no_noops", 1.0),)


def place(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / f"{folder.parent.name}-train.tfrecord-00000-of-00001").touch()
    return folder


def test_the_only_version_of_a_dataset_is_found(tmp_path: Path) -> None:
    version = place(tmp_path / "bridge_orig/1.0.0")
    (tmp_path / "bridge_orig/notes").mkdir()
    assert dataset_folder(tmp_path, "bridge_orig") == version
    assert dataset_folder(tmp_path / "bridge_orig", "1.0.0") == version


def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"one version of the dataset.*found: none"):
        dataset_folder(tmp_path, "kuka")


def test_of_several_versions_none_is_picked_silently(tmp_path: Path) -> None:
    for version in ("0.1.0", "1.0.0"):
        place(tmp_path / "kuka" / version)
    with pytest.raises(ConfigurationError, match=r"found: 0\.1\.0, 1\.0\.0"):
        dataset_folder(tmp_path, "kuka")


def test_broken_versions_of_bc_z_are_never_picked(tmp_path: Path) -> None:
    place(tmp_path / "bc_z/1.0.0")
    with pytest.raises(ConfigurationError, match=r"version 0\.1\.0 of the dataset.*found: 1\.0\.0"):
        dataset_folder(tmp_path, "bc_z")
    usable = place(tmp_path / "bc_z/0.1.0")
    assert dataset_folder(tmp_path, "bc_z") == usable
