from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from openvla_ros.errors import DependencyError
from openvla_ros.evaluation.report.svg import INK, drawing, require_matplotlib, svg_of

pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")


def drawn(name: str) -> str:
    with drawing(2.0, 1.5, (0.4, 0.1, 0.3, 0.2)) as figure:
        axes = figure.subplots()
        axes.plot([0.0, 1.23456789, 2.0], [1.0, 0.0, 1.0], "o", color=INK)
        axes.set_title("a < b & c")
        return svg_of(figure, name)


def test_a_drawing_is_one_element_that_reaches_out_of_nothing():
    svg = drawn("one")
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg" and "viewBox" in root.attrib
    assert "http" not in svg and "<style" not in svg and "<script" not in svg


def test_the_same_drawing_gives_the_same_bytes():
    assert drawn("one") == drawn("one")


def test_ids_of_two_drawings_differ_and_every_reference_leads_somewhere():
    ids = [set(re.findall(r' id="([^"]+)"', drawn(name))) for name in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', drawn("one"))
    assert {a or b for a, b in references} == ids[0]


def test_text_stays_text_and_ink_takes_the_colour_of_the_page():
    svg = drawn("one")
    assert "a &lt; b &amp; c" in svg
    assert "currentColor" in svg and INK not in svg


def test_coordinates_are_short():
    assert not re.search(r' d="[^"]*\d\.\d{3}', drawn("one"))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"pip install '\.\[plots\]'"):
        require_matplotlib()
