"""Which of LIBERO's asset files the tasks of a suite need, and which of them are not there.

The packages bring the tasks (BDDL files) and initial states, not the meshes and textures. Without
the original ones the objects look and weigh differently, and a success rate is not LIBERO's: so
everything is looked for before anything is simulated. Nothing is downloaded.
Source: hf-libero 0.1.4, envs/objects and envs/problems.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from openvla_ros.errors import ConfigurationError, DependencyError

SHOWN = 5  # missing files that a message names
_LFS_POINTER = b"version https://git-lfs"

#: Problem of a BDDL file, in lower case: its scene, and the textures that replace the scene's own.
_SCENES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "libero_floor_manipulation": (
        "scenes/libero_floor_base_style.xml",
        {"texplane": "light-gray-floor-tile.png", "tex-wall": "light-gray-plaster.png"},
    ),
    "libero_kitchen_tabletop_manipulation": (
        "scenes/libero_kitchen_tabletop_base_style.xml",
        {"texplane": "gray_ceramic_tile.png", "tex-wall": "yellow_linen_wall_texture.png"},
    ),
    "libero_living_room_tabletop_manipulation": (
        "scenes/libero_living_room_tabletop_base_style.xml",
        {"texplane": "seamless_wood_planks_floor.png", "tex-wall": "light-gray-plaster.png"},
    ),
    "libero_study_tabletop_manipulation": (
        "scenes/libero_study_base_style.xml",
        {"texplane": "light-gray-floor-tile.png", "tex-wall": "light-gray-plaster.png"},
    ),
    "libero_tabletop_manipulation": (
        "scenes/libero_tabletop_base_style.xml",
        {"texplane": "light-gray-floor-tile.png", "tex-wall": "light-gray-plaster.png"},
    ),
}
_IN_THE_SCENE = {"floor", "kitchen_table", "living_room_table", "study_table", "table"}
#: Where the object of a category lies.
_OBJECTS: Mapping[str, Sequence[str]] = {
    "stable_hope_objects/{0}/{0}.xml": (
        "alphabet_soup bbq_sauce butter chocolate_pudding cookies cream_cheese ketchup milk "
        "orange_juice salad_dressing tomato_sauce"
    ).split(),
    "stable_scanned_objects/{0}/{0}.xml": (
        "akita_black_bowl basket chefmate_8_frypan glazed_rim_porcelain_ramekin plate"
    ).split(),
    "turbosquid_objects/{0}/{0}.xml": (
        "black_book desk_caddy moka_pot porcelain_mug red_coffee_mug white_yellow_mug "
        "wine_bottle wine_rack"
    ).split(),
    "articulated_objects/{0}.xml": "flat_stove microwave white_cabinet wooden_cabinet".split(),
}
_DOCUMENTS = {name: path.format(name) for path, names in _OBJECTS.items() for name in names}


def require_assets(assets: Path, tasks: Sequence[Path]) -> None:
    """Return when every file that the tasks refer to is there.

    Args:
        assets: The folder `libero/libero/assets` of LIBERO, wherever it lies.
        tasks: BDDL files.

    Raises:
        DependencyError: Files are missing, and how to get them.
        ConfigurationError: A task is none of the four suites.
    """
    incomplete = {task: missing for task in tasks if (missing := missing_assets(assets, [task]))}
    if not incomplete:
        return
    missing = list(dict.fromkeys(path for paths in incomplete.values() for path in paths))
    names = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
    raise DependencyError(
        f"{len(incomplete)} of {len(tasks)} tasks lack LIBERO's own assets: {len(missing)} files "
        f"are not in {assets}, or are empty or Git LFS pointers: {names}. Nothing is put in their "
        "place: with other meshes and textures it is not LIBERO. Get the whole folder where "
        "there is network, and name it with --assets: the folder "
        "libero/libero/assets of a clone of github.com/Lifelong-Robot-Learning/LIBERO, or what "
        "hf-libero itself would download: "
        "hf download lerobot/libero-assets --repo-type dataset --local-dir DIR"
    )


def missing_assets(assets: Path, tasks: Sequence[Path]) -> list[PurePosixPath]:
    """Return the files that the tasks refer to and that are not there, relative to `assets`.

    Of an object or scene whose XML is missing it is not known what else it needs.

    Raises:
        ConfigurationError: A task has a scene or an object of none of the four suites.
        DependencyError: An XML file is damaged.
    """
    needed = dict.fromkeys(path for task in tasks for path in _needed(assets, task))
    return [path for path in needed if not _is_there(assets / path)]


def _needed(assets: Path, task: Path) -> Iterator[PurePosixPath]:
    """The XML files of a task's scene and objects, each followed by what it refers to."""
    for document, replaced in _documents(task):
        yield document
        if _is_there(assets / document):
            yield from _referred(assets, document, replaced)


def _documents(task: Path) -> list[tuple[PurePosixPath, Mapping[str, str]]]:
    """XML file and replaced textures of the scene, then of every category of objects."""
    text = task.read_text(encoding="utf-8")
    problem = re.search(r"\(problem\s+(\S+?)\)", text)
    sections = re.findall(r"\(:(?:fixtures|objects)\s(.*?)\)", text, re.S)
    named = {category for section in sections for category in re.findall(r"\s-\s+(\S+)", section)}
    categories = sorted(named - _IN_THE_SCENE)
    scene = _SCENES.get(problem[1].lower()) if problem else None
    unknown = [category for category in categories if category not in _DOCUMENTS]
    if scene is None or unknown:
        raise ConfigurationError(
            f"{task} is no task of the four suites (scene {problem[1] if problem else 'none'}, "
            f"unknown objects {unknown}); the runner knows those of hf-libero 0.1.4."
        )
    documents = [scene, *((_DOCUMENTS[category], {}) for category in categories)]
    return [(PurePosixPath(path), replaced) for path, replaced in documents]


def _referred(
    assets: Path, document: PurePosixPath, replaced: Mapping[str, str]
) -> Iterator[PurePosixPath]:
    """Meshes and textures of an XML file; those of the floor and walls are chosen by the task."""
    try:
        root = ET.parse(assets / document).getroot()
    except ET.ParseError as error:
        raise DependencyError(
            f"{assets / document} is damaged ({error}); copy LIBERO's assets again."
        ) from error
    for element in root.findall("./asset/*[@file]"):
        path = document.parent / element.attrib["file"]
        if (name := element.get("name", "")) in replaced:
            path = path.with_name(replaced[name])
        yield _without_dots(path)


def _without_dots(path: PurePosixPath) -> PurePosixPath:
    """`scenes/../textures/a.png` as `textures/a.png`."""
    kept: list[str] = []
    for part in path.parts:
        if part == ".." and kept:
            kept.pop()
        else:
            kept.append(part)
    return PurePosixPath(*kept)


def _is_there(path: Path) -> bool:
    """Whether a file is there with its content."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError:
        return False
    return bool(start) and start != _LFS_POINTER
