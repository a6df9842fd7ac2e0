"""scripts/setup.bash where something is absent: what it says, what it installs by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What every Debian and Ubuntu installation has.
BASIC_TOOLS = (
    "bash cat cp cut dirname env find flock grep rm sed sha256sum sort tail tee xargs".split()
)


class Machine:
    """A checkout and a PATH of which the test knows every command."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.checkout = folder / "checkout"
        self.bin.mkdir()
        (self.checkout / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.bash", self.checkout / "scripts")
        for tool in BASIC_TOOLS:
            self.link(tool, shutil.which(tool) or pytest.skip(f"{tool} is not on this machine"))
        self.command("id", "echo 1000")
        self.command("sudo", "exit 1")
        self.command("apt-get", f'echo "$@" >> {folder}/apt.log')
        self.link("python3", Path(sys.base_prefix) / "bin" / "python3")
        for tool in ("cmake", "c++", "make"):
            self.command(tool, "true")
        self.apt_log = folder / "apt.log"

    def link(self, name: str, target: str | Path) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).symlink_to(target)

    def command(self, name: str, body: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (self.bin / name).chmod(0o755)

    def set_up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("bash"), str(self.checkout / "scripts" / "setup.bash")],
            env={"PATH": str(self.bin), "HOME": os.environ["HOME"], **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_absent_tools_are_named_with_the_line_that_installs_them(machine: Machine) -> None:
    (machine.bin / "cmake").unlink()
    (machine.bin / "c++").unlink()
    result = machine.set_up()
    assert result.returncode == 1
    assert "apt-get install -y --no-install-recommends cmake g++\n" in result.stderr
    assert not (machine.checkout / ".venv").exists(), "it went on without its tools"


def test_absent_tools_are_installed_when_that_needs_no_password(machine: Machine) -> None:
    (machine.bin / "cmake").unlink()
    machine.command("id", "echo 0")
    # The environment cannot be made here (no network in a test): stop there, visibly.
    machine.command("sudo", "echo root needs no sudo >&2; exit 1")
    machine.command("apt-get", f'echo "$@" >> {machine.apt_log}; exit 100')
    result = machine.set_up()
    assert result.returncode == 1
    assert "could not install: cmake" in result.stderr
    update, install = machine.apt_log.read_text().splitlines()
    assert update == "update -qq"
    assert install.startswith("install -y") and install.endswith(" cmake")


def test_an_absent_python_is_named(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    result = machine.set_up()
    assert result.returncode == 1
    assert "python3 python3-venv python3-dev" in result.stderr


def test_a_python_without_venv_is_named_by_its_package(machine: Machine) -> None:
    """Debian and Ubuntu ship python3 without ensurepip: `python3 -m venv` then fails half-way."""
    real = Path(sys.base_prefix) / "bin" / "python3"
    machine.command(
        "python3",
        f'case "$*" in *ensurepip*) exit 1 ;; *_base_executable*) echo {machine.bin}/python3 ;; '
        f'*) exec {real} "$@" ;; esac',
    )
    result = machine.set_up()
    assert result.returncode == 1
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert f"{version}-venv" in result.stderr


def test_a_python_that_is_too_old_is_named_with_what_is_needed(machine: Machine) -> None:
    machine.command("python3", 'case "$*" in *-V*) echo Python 3.8.10 ;; *) exit 1 ;; esac')
    result = machine.set_up()
    assert result.returncode == 1
    assert "3.10 to 3.13" in result.stderr
    assert "Python 3.8.10" in result.stderr


@pytest.mark.slow
def test_a_second_run_keeps_the_environment_of_the_first(machine: Machine) -> None:
    """Where python3 is a symlink (Debian, Ubuntu), the second run used to start from nothing."""
    shutil.copy(ROOT / "constraints.txt", machine.checkout)
    (machine.bin / "python3").unlink()
    (machine.bin / "python3.any").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    (machine.bin / "python3").symlink_to("python3.any")
    nowhere = str(machine.checkout / "nowhere" / "torch-0-py3-none-any.whl")
    first, second = machine.set_up(TORCH_SPEC=nowhere), machine.set_up(TORCH_SPEC=nowhere)
    assert "new environment in .venv (there is none)" in first.stdout
    assert "pip cannot install" in first.stderr, "it must stop before it needs a network"
    assert "new environment" not in second.stdout
    assert "pip cannot install" in second.stderr
