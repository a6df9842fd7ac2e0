"""LIBERO itself behind `protocol.Environment`: the packages, their configuration, one task.

Everything of LIBERO is imported here, inside functions: the packages are an extra, and they ask on
standard input, or download, unless they are told beforehand where things lie.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from openvla_ros.data.atomic_files import write_whole_file
from openvla_ros.errors import DependencyError
from openvla_ros.evaluation.libero.assets import require_assets

CAMERA = "agentview"
IMAGE_SIZE = 256
ENVIRONMENT_SEED = 0  # reset draws from NumPy's global numbers, also what no initial state sets
CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
#: Exactly these: robosuite 1.5 has another interface, other objects would be another benchmark.
REQUIRED = {"hf-libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1"}
_HOW_TO_INSTALL = (
    "best in a virtual environment of its own, after torch: pip install '.[model,libero]' in the "
    "folder of openvla_ros, then pip install --no-deps "
    + " ".join(f"{name}=={version}" for name, version in REQUIRED.items())
    + " (without --no-deps they replace OpenCV and bring wandb and robomimic)"
)


@dataclass(frozen=True)
class Libero:
    """The installed package, with its asset files checked.

    Attributes:
        root: Folder of the package `libero.libero`.
        assets: Folder of the original asset files.
    """

    root: Path
    assets: Path


def find_libero(suite: str, assets: Path | None = None) -> Libero:
    """Return LIBERO when its packages and every asset file of a suite are there.

    Nothing is imported, written or downloaded.

    Args:
        suite: "libero_spatial", ...
        assets: None looks in the package, then where hf-libero puts its own download.

    Raises:
        DependencyError: A package or a file is missing; the text says how to get it.
    """
    root = _package_folder()
    places = [root / "assets", Path("~/.cache/libero/assets").expanduser()]
    found = assets or next((place for place in places if place.is_dir()), places[0])
    require_assets(found, sorted((root / "bddl_files" / suite).glob("*.bddl")))
    return Libero(root, found.resolve())


def load_tasks(libero: Libero, suite: str, folder: Path) -> list[SimulatedTask]:
    """Return the tasks of a suite in the benchmark's order, with their initial states.

    Writes LIBERO's config.yaml into `folder`, for this process: without one its import asks on
    standard input.

    Raises:
        DependencyError: A package that LIBERO imports is missing.
        StorageError: `folder` cannot be written.
    """
    _configure(libero, folder)
    try:
        package: Any = importlib.import_module("libero.libero")
        benchmark: Any = importlib.import_module("libero.libero.benchmark")
    except ImportError as error:
        raise _missing(error) from error
    # hf-libero downloads the assets when they are not inside its own folder.
    package._assets_path_cache = str(libero.assets)
    tasks = benchmark.get_benchmark_dict()[suite]()
    return [
        SimulatedTask(
            tasks.get_task(number).language,
            Path(tasks.get_task_bddl_file_path(number)),
            np.asarray(tasks.get_task_init_states(number)),
        )
        for number in range(tasks.n_tasks)
    ]


@dataclass(frozen=True)
class SimulatedTask:
    """A task of LIBERO: `protocol.Task`.

    Attributes:
        instruction: In lower case, from the name of its file; the BDDL file words it differently.
        bddl: Its BDDL file.
        states: (n, m) float64, the flattened MuJoCo states that episodes begin with.
    """

    instruction: str
    bddl: Path
    states: np.ndarray

    @property
    def initial_states(self) -> int:
        """How many are stored: 50."""
        return len(self.states)

    def open(self) -> Simulation:
        """Start its simulator, seeded as the reference does.

        Raises:
            DependencyError: A package that LIBERO imports is missing.
        """
        try:
            environments: Any = importlib.import_module("libero.libero.envs")
        except ImportError as error:
            raise _missing(error) from error
        simulator = environments.OffScreenRenderEnv(
            bddl_file_name=str(self.bddl),
            camera_names=[CAMERA],  # the reference also draws the wrist's, which nobody looks at
            camera_heights=IMAGE_SIZE,
            camera_widths=IMAGE_SIZE,
        )
        simulator.seed(ENVIRONMENT_SEED)
        return Simulation(simulator, self.states)


class Simulation:
    """A running task of LIBERO: `protocol.Environment`."""

    def __init__(self, simulator: Any, states: np.ndarray) -> None:
        self._simulator = simulator
        self._states = states

    def begin(self, episode: int) -> np.ndarray:
        """Reset, and set the stored state; return (256, 256, 3) uint8 RGB."""
        self._simulator.reset()
        return _image(self._simulator.set_init_state(self._states[episode]))

    def step(self, command: Sequence[float]) -> tuple[np.ndarray, bool]:
        """Apply a command for one step of 20 Hz; return image and whether the goal is reached."""
        observation, _, is_done, _ = self._simulator.step(list(command))
        return _image(observation), bool(is_done)

    def close(self) -> None:
        """End the simulator."""
        self._simulator.close()


def _image(observation: Any) -> np.ndarray:
    return np.asarray(observation[f"{CAMERA}_image"])


def _package_folder() -> Path:
    wrong = []
    for name, version in REQUIRED.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != version:
            wrong.append(f"{name} {version} ({installed})")
    spec = importlib.util.find_spec("libero")
    if wrong or spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"The LIBERO runner needs {', '.join(wrong) or 'libero'}: {_HOW_TO_INSTALL}."
        )
    return Path(next(iter(spec.submodule_search_locations))).resolve() / "libero"


def _configure(libero: Libero, folder: Path) -> None:
    paths = {
        "benchmark_root": libero.root,
        "bddl_files": libero.root / "bddl_files",
        "init_states": libero.root / "init_files",
        "datasets": folder / "datasets",
        "assets": libero.assets,
    }
    text = yaml.safe_dump({name: str(path) for name, path in paths.items()})
    write_whole_file(folder / "config.yaml", [text.encode()])
    os.environ[CONFIG_VARIABLE] = str(folder)


def _missing(error: ImportError) -> DependencyError:
    return DependencyError(f"LIBERO cannot be imported ({error}): {_HOW_TO_INSTALL}.")
