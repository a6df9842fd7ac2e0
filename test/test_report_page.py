from __future__ import annotations

from html.parser import HTMLParser

import pytest

from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    definitions_html,
    figure_html,
    findings_html,
    html_page,
    notice,
    paragraph,
    table_html,
    text,
    verdict,
)
from openvla_ros.types import Finding

ATTACK = "<script>alert('\"1\"')</script>&"
VOID = {"meta", "img", "br", "path", "use"}


class Balance(HTMLParser):
    """Fails where an element is closed that is not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()


def balanced(page: str) -> set[str]:
    parser = Balance()
    parser.feed(page)
    assert not parser.open, parser.open
    return parser.seen


def test_nothing_that_people_wrote_becomes_markup():
    pieces = (
        paragraph(ATTACK),
        table_html([ATTACK], [[ATTACK]], ATTACK),
        findings_html([Finding(ATTACK, ATTACK, ATTACK, ATTACK, "warn")]),
        figure_html("<svg></svg>", ATTACK, ATTACK),
        definitions_html([(ATTACK, ATTACK)]),
        notice(ATTACK, ATTACK, [ATTACK]),
        verdict(ATTACK, "ok"),
    )
    page = html_page(
        ATTACK, [Section(ATTACK, "".join(pieces))], subtitle=ATTACK, notice_html=notice(ATTACK, "")
    )
    assert "script" not in balanced(page)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 18


def test_markup_made_here_is_kept():
    assert text(Html("<b>x</b>")) == "<b>x</b>"
    assert "<td><b>x</b></td>" in table_html(["a", "b"], [["1", Html("<b>x</b>")]])


def test_the_page_forbids_scripts_and_loading():
    page = html_page("t", [])
    assert "default-src 'none'" in page
    assert "http://" not in page and "https://" not in page


def test_problems_come_first_then_warnings_and_the_order_within_is_kept():
    findings = [
        Finding("s", "fine", "", level="ok"),
        Finding("s", "so-so", "", level="warn"),
        Finding("s", "first", "", level="problem"),
        Finding("s", "second", "", level="problem"),
    ]
    listed = findings_html(findings)
    places = [listed.index(item) for item in ("first", "second", "so-so", "fine")]
    assert places == sorted(places)
    assert "Problem" in listed and "Warning" in listed


def test_no_findings_are_said_in_words():
    assert "Nothing was examined" in findings_html([])


def test_columns_of_numbers_stand_to_the_right():
    table = table_html(
        ["name", "error", "word"], [["a", "3.2 mm", "good"], ["b", "n/a (no recording)", "3"]]
    )
    assert '<td class="number">3.2 mm</td>' in table
    assert "<td>good</td>" in table
    assert '<th scope="row">a</th>' in table


def test_a_row_of_the_wrong_length_is_a_fault():
    with pytest.raises(AssertionError):
        table_html(["a", "b"], [["1"]])


def test_an_empty_table_is_said_in_words():
    assert table_html(["a"], [], "Gripper events", empty="none recorded.") == paragraph(
        "Gripper events: none recorded."
    )


def test_sections_of_one_name_have_different_anchors():
    page = html_page("t", [Section("A b!", ""), Section("A b?", ""), Section("…", "")])
    assert 'id="a-b"' in page and 'id="a-b--2"' in page and 'id="section"' in page
    assert 'href="#a-b--2"' in page
    assert balanced(page) >= {"nav", "main", "section", "h1", "h2"}
