"""docs/failure_modes.md says what failure_rows.py says, and every row has a test that looks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from failure_rows import ROWS, SECTIONS, Row, page
from failure_scenarios import SCENARIOS

from openvla_ros.config import PARAMETERS
from openvla_ros.control.states import Reason, State

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "failure_modes.md"
DIRECT = ("test_failure_modes.py", "test_failure_processes.py")


def functions(file: str) -> dict[str, str]:
    """Name → source of every test function of a file."""
    text = (ROOT / "test" / file).read_text()
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows_read_by_tests() -> set[str]:
    """Rows whose expectations some test compares with."""
    read = {scenario.row for scenario in SCENARIOS}
    for file in DIRECT:
        tree = ast.parse((ROOT / "test" / file).read_text())
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        read |= strings & set(ROWS)
    return read


def test_the_page_is_written_from_the_rows() -> None:
    assert PAGE.read_text() == page(), "run: python test/failure_rows.py > docs/failure_modes.md"


def test_every_row_is_compared_with_what_the_node_does() -> None:
    elsewhere = {key for key, row in ROWS.items() if row.tests}
    assert set(ROWS) - rows_read_by_tests() - elsewhere == set()


def test_no_scenario_belongs_to_a_row_that_is_gone() -> None:
    assert {scenario.row for scenario in SCENARIOS} <= set(ROWS)


@pytest.mark.parametrize("row", [r for r in ROWS.values() if r.tests], ids=lambda r: r.key)
def test_the_tests_that_a_row_names_exist_and_look_at_its_reason(row: Row) -> None:
    for name in row.tests:
        file, _, function = name.partition("::")
        assert function in functions(file), name
        source = functions(file)[function]
        if row.reason not in (None, Reason.OK) and "Reason." in source:
            assert f"Reason.{row.reason.name}" in source, name


def test_every_reason_to_stop_has_a_row() -> None:
    known = {row.reason for row in ROWS.values()}
    # A parameter that cannot be used fails configure: a mistake of a person, and nothing moves.
    assert set(Reason) - known == {Reason.BAD_PARAMETER}


def test_every_state_but_loading_has_a_row() -> None:
    assert set(State) - {row.state for row in ROWS.values()} == {State.LOADING}


def test_keys_are_unique_and_cells_hold_no_separator() -> None:
    rows = [row for _, section in SECTIONS for row in section]
    assert len(rows) == len(ROWS)
    for line in re.findall(r"^\|.*$", page(), re.M):
        assert line.count("|") == 6, line


def test_the_limits_on_the_page_are_the_defaults_of_the_parameters() -> None:
    told = re.findall(r"`([a-z_]+)` \(([\d.]+) s\)", page())
    assert {"image_timeout", "image_max_age", "decay_time", "hang_timeout"} <= {n for n, _ in told}
    for name, seconds in told:
        assert PARAMETERS[name].default == float(seconds), name
