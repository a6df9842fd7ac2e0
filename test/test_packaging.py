"""One version, one list of executables, one list of dependencies: wherever they are written."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import openvla_ros

ROOT = Path(__file__).resolve().parents[1]


def setup_literals() -> dict[str, object]:
    """Return setup.py's top-level constants and the arguments of setup(), without running it."""
    found: dict[str, object] = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            for keyword in node.value.keywords:
                if isinstance(keyword.value, ast.Constant):
                    found[str(keyword.arg)] = keyword.value.value
    return found


def installed_programs() -> set[str]:
    text = re.search(r"install\(PROGRAMS(.*?)DESTINATION", cmake(), re.S)
    assert text, "CMakeLists.txt installs no programs"
    return set(re.findall(r"scripts/(\S+)", text[1]))


def cmake() -> str:
    return (ROOT / "CMakeLists.txt").read_text()


def requirement_name(line: str) -> str:
    return re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-").replace(".", "-")


def pinned_names(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "#-"]
    return [requirement_name(line) for line in lines]


def test_the_version_is_the_same_everywhere() -> None:
    package_xml = ET.parse(ROOT / "package.xml").getroot()
    versions = {
        "package.xml": package_xml.findtext("version"),
        "setup.py": setup_literals()["version"],
        "openvla_ros.__version__": openvla_ros.__version__,
        "CHANGELOG.md": re.findall(
            r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M
        )[0],
    }
    assert len(set(versions.values())) == 1, versions


def test_setup_py_cmake_and_scripts_list_the_same_executables() -> None:
    entry_points = setup_literals()["EXECUTABLES"]
    assert set(entry_points) == installed_programs()


@pytest.mark.parametrize("name", sorted(setup_literals()["EXECUTABLES"]))
def test_an_executable_calls_the_main_its_entry_point_names(name: str) -> None:
    module, function = setup_literals()["EXECUTABLES"][name].split(":")
    path = ROOT / "scripts" / name
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env python3", "any other line misses the activated environment"
    assert f"from {module} import {function}" in lines
    assert path.stat().st_mode & stat.S_IXUSR, f"{path} is not executable"
    source = ROOT.joinpath(*module.split("."))
    candidates = [source.with_suffix(".py"), source / "__init__.py", source]
    texts = [c.read_text() for c in candidates if c.is_file()]
    assert texts, f"{module} does not exist"
    assert re.search(
        rf"^(async )?def {function}\(|import .*\b{function}\b|^{function} =", texts[0], re.M
    )


def test_cmake_generates_every_interface_there_is() -> None:
    on_disk = {
        f"{p.parent.name}/{p.name}"
        for k in ("msg", "srv", "action")
        for p in (ROOT / k).glob(f"*.{k}")
    }
    listed = set(re.findall(r'"((?:msg|srv|action)/\S+?)"', cmake()))
    assert listed == on_disk


def test_package_xml_declares_what_the_interfaces_use() -> None:
    declared = {e.text for e in ET.parse(ROOT / "package.xml").getroot().iter("depend")}
    used = set(re.search(r"DEPENDENCIES (.*?)\n", cmake())[1].split())
    in_files = {
        package
        for kind in ("msg", "srv", "action")
        for path in (ROOT / kind).glob(f"*.{kind}")
        for package in re.findall(r"^(\w+)/\w+", path.read_text(), re.M)
    }
    assert declared == used
    assert in_files <= declared


def test_every_dependency_of_setup_py_is_pinned_and_torch_is_not() -> None:
    setup = setup_literals()
    wanted = {
        requirement_name(r) for group in [setup["CORE"], *setup["EXTRAS"].values()] for r in group
    }
    pinned = set(pinned_names(ROOT / "constraints.txt"))
    assert wanted - pinned == {"torch"}, "constraints.txt and setup.py have drifted apart"


def test_no_constraint_is_for_a_local_build_or_a_ros_package() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not [n for n in pinned_names(ROOT / "constraints.txt") if n.startswith("ros-")]
    assert not re.findall(r"==\S*\+", text), "a local version exists on one machine only"


def test_the_core_needs_no_torch() -> None:
    """The mock policy, messages and control run on a machine that has none."""
    pulling_torch = {"torch", "accelerate", "peft", "bitsandbytes", "torchvision", "timm"}
    assert not {requirement_name(r) for r in setup_literals()["CORE"]} & pulling_torch


def test_the_overrides_for_apt_ros_replace_pins_that_exist() -> None:
    overrides = pinned_names(ROOT / "scripts" / "apt_ros_constraints.txt")
    assert set(overrides) <= set(pinned_names(ROOT / "constraints.txt"))
    pattern = re.search(r"grep -vE '\^\((.*?)\)=='", (ROOT / "scripts" / "setup.bash").read_text())
    assert pattern and set(pattern[1].split("|")) == set(overrides)


def test_no_package_index_is_written_into_the_repository() -> None:
    """Which index is right depends on the machine; pip's own configuration names it."""
    pattern = re.compile(r"(index-url|find-links|INDEX_URL|FIND_LINKS)[ =:'\"]+\w+://")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {".py", ".bash", ".txt", ".toml", ".yml", ".yaml", ".md", ".cfg", ""}
    paths = [ROOT / n for n in listed.stdout.split("\0") if n and Path(n).suffix in texts]
    found = [str(p) for p in paths if p.is_file() and pattern.search(p.read_text(errors="replace"))]
    assert not found


def test_the_environment_script_works_anywhere_and_under_strict_shells() -> None:
    if not (ROOT / ".venv" / "openvla_ros.env").exists():
        pytest.skip("this checkout is not set up with `make setup`")
    code = (
        f"set -eu; cd /; source '{ROOT}/scripts/env.bash'; source '{ROOT}/scripts/env.bash'; "
        "command -v colcon >/dev/null; "
        "python -c 'import rclpy, openvla_ros.msg; print(openvla_ros.__file__)'; "
        'echo "$FASTRTPS_DEFAULT_PROFILES_FILE"; echo "$-"; '
        'tr : "\\n" <<<"$PATH" | sort | uniq -d'
    )
    clean = {"HOME": os.environ["HOME"], "PATH": "/usr/local/bin:/usr/bin:/bin"}
    result = subprocess.run(
        ["bash", "-c", code], env=clean, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(ROOT / "openvla_ros" / "__init__.py"), "tests must see the checkout"
    assert lines[1] == str(ROOT / "config" / "fastdds_images.xml")
    assert {"e", "u"} <= set(lines[2]), "the caller's shell options were lost"
    assert lines[3:] == [], "sourcing twice lengthens PATH"
