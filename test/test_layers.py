"""The laws of the house hold, and the checks that say so can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import layer_rules as rules
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_law(rule) -> None:
    modules = rules.read_package(ROOT)
    assert modules, f"no sources below {ROOT}: nothing was checked"
    violations = rule(modules)
    assert not violations, f"{rule.__doc__}\n" + "\n".join(violations)


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [
        ("openvla_ros", ["torch", "rclpy", "numpy", "transformers", "cv2"]),
        ("openvla_ros.errors", ["torch", "rclpy", "numpy"]),
        ("openvla_ros.types", ["torch", "rclpy", "transformers"]),
        ("openvla_ros.control", ["torch", "rclpy", "cv2", "yaml"]),
        ("openvla_ros.messages", ["torch", "rclpy", "cv_bridge"]),
        ("openvla_ros.mock_policy", ["torch", "rclpy", "transformers"]),
    ],
)
def test_importing_a_light_module_stays_light(name: str, forbidden: list[str]) -> None:
    """A fresh interpreter says what really was imported, whichever way it came in."""
    source = ROOT.joinpath(*name.split("."))
    assert source.is_dir() or source.with_suffix(".py").exists(), f"{name} has moved"
    code = f"import sys, {name}; print(*[m for m in {forbidden!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], f"import {name} brings {result.stdout}"


PLANTED = [
    (rules.unknown_rooms, {"gadgets.py": ""}, "gadgets.py:1"),
    (rules.imports_run_one_way, {"model/a.py": "from openvla_ros.ros import x"}, "a.py:1"),
    (rules.imports_run_one_way, {"types.py": "from . import policy"}, "`types` imports `policy`"),
    (rules.imports_run_one_way, {"control/a.py": "from ..model import b"}, "blind to each other"),
    (rules.imports_run_one_way, {"model/a.py": "import openvla_ros.control.x"}, "blind"),
    (rules.imports_run_one_way, {"engine/a.py": "def f():\n    import openvla_ros.cli"}, "a.py:2"),
    (
        rules.imports_run_one_way,
        {"data/a.py": "from openvla_ros import sim"},
        "`data` imports `sim`",
    ),
    (
        rules.imports_run_one_way,
        {"data/a.py": "import importlib\nimportlib.import_module('openvla_ros.sim')"},
        "a.py:2",
    ),
    (
        rules.no_circles,
        {"model/a.py": "from .b import x", "model/b.py": "def f():\n    from . import a"},
        "openvla_ros.model.a -> openvla_ros.model.b -> openvla_ros.model.a",
    ),
    (rules.only_ros_imports_ros, {"cli.py": "import rclpy.node"}, "rclpy.node"),
    (
        rules.only_ros_imports_ros,
        {"messages.py": "from sensor_msgs.msg import Image"},
        "sensor_msgs",
    ),
    (
        rules.only_ros_imports_ros,
        {"sim/a.py": "from openvla_ros.msg import VLAAction"},
        "VLAAction",
    ),
    (rules.only_ros_imports_ros, {"data/a.py": "def f():\n    import cv_bridge"}, "a.py:2"),
    (rules.no_torch_where_it_is_not_needed, {"control/a.py": "import torch"}, "control/a.py"),
    (
        rules.no_torch_where_it_is_not_needed,
        {
            "ros/node.py": "from ..model.stats import x",
            "model/__init__.py": "from .net import y",
            "model/net.py": "import torch.nn",
            "model/stats.py": "",
        },
        "ros.node -> openvla_ros.model.stats -> openvla_ros.model -> openvla_ros.model.net",
    ),
    (
        rules.control_is_a_clean_room,
        {"control/a.py": "from time import monotonic"},
        "time.monotonic",
    ),
    (rules.control_is_a_clean_room, {"control/a.py": "import scipy"}, "scipy"),
    (rules.control_is_a_clean_room, {"control/a.py": "x = open('f')"}, "calls open"),
    (rules.control_is_a_clean_room, {"control/a.py": "x = np.load('f')"}, "calls np.load"),
    (rules.sizes, {"policy.py": "x = 1\n" * 401}, "401 lines"),
    (rules.sizes, {"policy.py": "def f():\n" + "    x = 1\n" * 80}, "f has 81 lines"),
    (rules.names_say_something, {"model/utils.py": ""}, "`utils`"),
    (rules.names_say_something, {"data/bag_helpers.py": ""}, "`bag_helpers`"),
    (rules.names_say_something, {"ros/msg/a.py": ""}, "generated"),
    (
        rules.nothing_runs_code_from_a_checkpoint,
        {"policy.py": "load(x, trust_remote_code=True)"},
        "trust_remote_code=True",
    ),
    (
        rules.nothing_runs_code_from_a_checkpoint,
        {"policy.py": "torch.load(f, map_location='cpu')"},
        "weights_only",
    ),
    (
        rules.nothing_runs_code_from_a_checkpoint,
        {"policy.py": "import pickle\nx = pickle.load(f)"},
        "pickle.load",
    ),
    (
        rules.nothing_runs_code_from_a_checkpoint,
        {"policy.py": "from pickle import Unpickler"},
        "pickle.Unpickler",
    ),
    (rules.nothing_runs_code_from_a_checkpoint, {"policy.py": "import pickle as p"}, "name p"),
    (rules.nothing_runs_code_from_a_checkpoint, {"policy.py": "import dill"}, "dill"),
    (
        rules.nothing_runs_code_from_a_checkpoint,
        {"policy.py": "np.load(f, allow_pickle=flag)"},
        "allow_pickle=flag",
    ),
]


def plant(root: Path, files: dict[str, str]) -> list[rules.Module]:
    for name, text in files.items():
        path = root / rules.PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return rules.read_package(root)


@pytest.mark.parametrize(("rule", "files", "expected"), PLANTED)
def test_a_planted_violation_is_found_and_named(rule, files, expected, tmp_path) -> None:
    violations = rule(plant(tmp_path, files))
    assert len(violations) >= 1, "the rule let it pass"
    assert any(expected in line for line in violations), violations


ALLOWED = {
    "__init__.py": "__version__ = '1'",
    "errors.py": "",
    "types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import policy",
    "control/a.py": "import math\nimport numpy as np\nfrom ..types import Policy\nrobot.load()",
    "model/net.py": "import pickle, torch\ntry: torch.load(f, weights_only=True)\n"
    "except pickle.UnpicklingError: pass",
    "mock_policy.py": "from openvla_ros import __version__, types",
    "policy.py": "from .model import net\nload(x, trust_remote_code=False)",
    "ros/node.py": "import rclpy\nfrom ..msg import VLAAction\ndef f():\n    from .. import policy",
    "cli.py": "from .ros import node\nfrom . import policy",
}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_what_the_laws_allow_passes(rule, tmp_path) -> None:
    assert rule(plant(tmp_path, ALLOWED)) == []
