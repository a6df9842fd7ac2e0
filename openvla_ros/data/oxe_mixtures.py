"""The named mixtures of Open X-Embodiment datasets that OpenVLA was trained on.

A weight counts per step: a dataset is drawn with a probability in proportion to its weight times
its number of steps. Names are those of the datasets' folders, statistics keys and transforms.
Source: openvla @ c8f03f4, rlds/oxe/mixtures.py.
"""

from __future__ import annotations

from pathlib import Path

from openvla_ros.errors import ConfigurationError

Mixture = tuple[tuple[str, float], ...]

_CONVERTED = "_converted_externally_to_rlds"
HYDRA = f"stanford_hydra_dataset{_CONVERTED}"
BUDS = f"austin_buds_dataset{_CONVERTED}"
FRANKA_PLAY = f"nyu_franka_play_dataset{_CONVERTED}"
MANISKILL = f"maniskill_dataset{_CONVERTED}"
FURNITURE = f"furniture_bench_dataset{_CONVERTED}"
EXPLORATION = f"cmu_franka_exploration_dataset{_CONVERTED}"
KITCHEN = f"ucsd_kitchen_dataset{_CONVERTED}"
SAILOR = f"austin_sailor_dataset{_CONVERTED}"
SIRIUS = f"austin_sirius_dataset{_CONVERTED}"
NONPREHENSILE = f"kaist_nonprehensile{_CONVERTED}"
EDAN = f"dlr_edan_shared_control{_CONVERTED}"
ROBOCOOK = f"stanford_robocook{_CONVERTED}"
PICKUP_INSERT = f"iamlab_cmu_pickup_insert{_CONVERTED}"

_RTX: Mixture = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge_orig", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 2.0),
    ("berkeley_cable_routing", 3.0),
    ("roboturk", 1.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 1.0),
    ("toto", 1.0),
)
# The list also has berkeley_rpt_converted_externally_to_rlds. The reference warns and goes on
# without it, because its actions are joint angles and its only camera is at the wrist.
_FRANKA: Mixture = (
    ("taco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("viola", 1.0),
    ("toto", 1.0),
    (HYDRA, 1.0),
    (BUDS, 3.0),
    (FRANKA_PLAY, 3.0),
    (MANISKILL, 0.1),
    (FURNITURE, 0.1),
    (EXPLORATION, 5.0),
    (SAILOR, 1.0),
    (SIRIUS, 1.0),
    (NONPREHENSILE, 3.0),
    (ROBOCOOK, 1.0),
    (PICKUP_INSERT, 1.0),
    ("utaustin_mutex", 1.0),
    ("cmu_play_fusion", 1.0),
)
_MAGIC_SOUP: Mixture = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge_orig", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("roboturk", 2.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 2.0),
    ("toto", 1.0),
    ("language_table", 0.1),
    (HYDRA, 2.0),
    (BUDS, 1.0),
    (FRANKA_PLAY, 3.0),
    (FURNITURE, 0.1),
    (KITCHEN, 2.0),
    (SAILOR, 1.0),
    (SIRIUS, 1.0),
    (EDAN, 1.0),
    (PICKUP_INSERT, 1.0),
    ("utaustin_mutex", 1.0),
    ("berkeley_fanuc_manipulation", 2.0),
    ("cmu_stretch", 1.0),
)
_MAGIC_SOUP_PLUS: Mixture = (
    *_MAGIC_SOUP,
    ("bc_z", 0.2),
    ("fmb_dataset", 1.0),
    ("dobbe", 0.2),
    ("droid", 0.06),
)
MIXTURES: dict[str, Mixture] = {
    "bridge": (("bridge_orig", 1.0),),
    "bridge_rt_1": (("bridge_orig", 1.0), ("fractal20220817_data", 1.0)),
    "rtx": _RTX,
    "rtx_franka": (*_RTX, *_FRANKA),
    "oxe_magic_soup": _MAGIC_SOUP,
    "oxe_magic_soup_plus": _MAGIC_SOUP_PLUS,
    "oxe_magic_soup_plus_minus": (
        ("fractal20220817_data", 1.0),
        *(entry for entry in _MAGIC_SOUP_PLUS[1:] if entry[0] not in ("language_table", "droid")),
    ),
}
#: Datasets of which only one version is usable: later ones of bc_z are broken.
VERSIONS = {"bc_z": "0.1.0"}


def named_mixture(name: str) -> Mixture:
    """Return name and weight of every dataset of a mixture.

    Args:
        name: One of `MIXTURES`; any other is that of a single dataset, with weight 1.

    Returns:
        Each dataset once, at the weight of its first place in the list.
    """
    weights: dict[str, float] = {}
    for dataset, weight in MIXTURES.get(name, ((name, 1.0),)):
        weights.setdefault(dataset, weight)
    return tuple(weights.items())


def dataset_folder(parent: Path, name: str) -> Path:
    """Return the folder that holds the TFRecord files of a dataset: `parent`/`name`/<version>.

    Args:
        parent: Folder with one folder per dataset, as TensorFlow Datasets lays them out.
        name: Of the dataset. Its folder may also hold the files itself, without a version.

    Raises:
        ConfigurationError: It is not there, or several versions are, or not the usable one.
    """
    folder = parent / name
    if _holds_records(folder):
        return folder
    versions = sorted(path for path in folder.glob("*") if _holds_records(path))
    wanted = VERSIONS.get(name)
    fitting = [path for path in versions if wanted is None or path.name == wanted]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(path.name for path in versions) or "none"
    which = f"version {wanted}" if wanted else "one version"
    raise ConfigurationError(
        f"{folder} must hold the TFRecord files of {which} of the dataset, such "
        f"as {folder / (wanted or '1.0.0')}. Versions found: {found}."
        + (" Name the folder of one of them as a source instead." if len(fitting) > 1 else "")
    )


def _holds_records(folder: Path) -> bool:
    return any(folder.glob("*.tfrecord*"))
