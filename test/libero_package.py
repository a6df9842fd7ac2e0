"""A stand-in for the packages of LIBERO: the same names and habits, no simulator."""

from __future__ import annotations

from pathlib import Path

REFUSES_WITHOUT_CONFIGURATION = """
import os
_assets_path_cache = None
config_file = os.path.join(os.environ["LIBERO_CONFIG_PATH"], "config.yaml")
if not os.path.exists(config_file):
    raise AssertionError("it would ask on standard input")
def get_assets_path():
    if _assets_path_cache is None:
        raise AssertionError("it would download")
    return _assets_path_cache
"""

BENCHMARK = """
import os, yaml, libero.libero, numpy as np
from collections import namedtuple
Task = namedtuple("Task", "language")
class Suite:
    n_tasks = 2
    def __init__(self):
        print("[info] using task orders")
        self.paths = yaml.safe_load(open(libero.libero.config_file))
    def get_task(self, i):
        return Task(f"task {i}")
    def get_task_bddl_file_path(self, i):
        return os.path.join(self.paths["bddl_files"], "libero_goal", f"task_{i}.bddl")
    def get_task_init_states(self, i):
        return np.arange(6.0).reshape(3, 2) + 10 * i
def get_benchmark_dict():
    return {"libero_goal": Suite}
"""

ENVIRONMENTS = """
import os, numpy as np
from libero.libero import get_assets_path
made = []
class OffScreenRenderEnv:
    def __init__(self, **options):
        assert os.path.isfile(options["bddl_file_name"]) and os.path.isdir(get_assets_path())
        self.options, self.calls = options, []
        made.append(self)
    def seed(self, seed):
        self.calls.append(("seed", seed))
    def reset(self):
        self.calls.append("reset")
    def _seen(self):
        side = self.options["camera_heights"]
        return {"agentview_image": np.zeros((side, side, 3), np.uint8)}
    def set_init_state(self, state):
        self.calls.append(("state", state.tolist()))
        self.steps = 0
        return self._seen()
    def step(self, action):
        self.steps += 1
        return self._seen(), 0.0, self.steps == 13, {}
    def close(self):
        self.calls.append("close")
"""

TASK = """(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
    (:regions
      (plate_region
          (:target main_table)
          (:yaw_rotation (
              (0.0 - 1.0)
            )
          )
      )
    )
  (:fixtures
    main_table - table
    wooden_cabinet_1 - wooden_cabinet
  )
  (:objects
    akita_black_bowl_1 akita_black_bowl_2 - akita_black_bowl
    plate_1 - plate
  )
)
"""

DISTRIBUTIONS = {"hf_libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1"}
SCENE = "scenes/libero_tabletop_base_style.xml"
#: Every file that `TASK` needs, in the order in which it is looked for.
NEEDED = (
    SCENE,
    "textures/light-gray-floor-tile.png",
    "textures/wood.png",
    "textures/light-gray-plaster.png",
    "stable_scanned_objects/akita_black_bowl/akita_black_bowl.xml",
    "stable_scanned_objects/akita_black_bowl/texture.png",
    "stable_scanned_objects/akita_black_bowl/visual/bowl.msh",
    "stable_scanned_objects/plate/plate.xml",
    "articulated_objects/wooden_cabinet.xml",
    "articulated_objects/wooden_cabinet/top.msh",
)
_DOCUMENTS = {
    SCENE: """<texture file="../textures/replaced.png" name="texplane"/>
        <texture builtin="flat" name="textable"/>
        <texture file="../textures/wood.png" name="tex-table"/>
        <texture file="../textures/replaced_too.png" name="tex-wall"/>""",
    NEEDED[4]: '<texture file="texture.png"/><mesh file="visual/bowl.msh"/>',
    NEEDED[7]: "",
    NEEDED[8]: '<mesh file="wooden_cabinet/top.msh"/>',
}


def make_assets(folder: Path) -> Path:
    """Fill a folder with everything that `TASK` needs."""
    for name in NEEDED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        asset = _DOCUMENTS.get(name)
        path.write_text("content" if asset is None else f"<mujoco><asset>{asset}</asset></mujoco>")
    return folder


def make_package(folder: Path) -> Path:
    """Fill a folder that goes onto sys.path; return that of the package `libero.libero`."""
    for name, version in DISTRIBUTIONS.items():
        information = folder / f"{name}-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    root = folder / "libero" / "libero"
    modules = {"__init__": REFUSES_WITHOUT_CONFIGURATION, "benchmark": BENCHMARK}
    for name, text in {**modules, "envs": ENVIRONMENTS}.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    (folder / "libero" / "__init__.py").write_text("")
    tasks = root / "bddl_files" / "libero_goal"
    tasks.mkdir(parents=True)
    for number in range(2):
        (tasks / f"task_{number}.bddl").write_text(TASK)
    return root
