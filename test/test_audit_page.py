"""The audit as HTML: whole, self-contained, and safe to open."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from audit_faults import make_episode, octo_episodes, planted
from bridge_episodes import WHY_NOT, bridge_stats, has_recordings

from openvla_ros.action_specs import load_action_spec
from openvla_ros.evaluation.audit.audit_report import audit_episodes
from openvla_ros.evaluation.audit.page import MOST_ROWS, audit_page

SPEC = load_action_spec("bridge_orig")
needs_recordings = pytest.mark.skipif(not has_recordings(), reason=WHY_NOT)


class Outline(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def page_of(*instructions: str) -> str:
    rng = np.random.default_rng(0)
    episodes = [
        make_episode(
            f"e{i}",
            rng.normal(0, 0.02, (6, 7)),
            rng.integers(0, 255, (6, 400, 8, 3), dtype=np.uint8),
            instruction=text,
        )
        for i, text in enumerate(instructions)
    ]
    return audit_page(audit_episodes(episodes, SPEC, {}, None), ["my bag"])


@needs_recordings
def test_page_of_real_episodes_has_every_section_and_loads_nothing() -> None:
    report = audit_episodes(octo_episodes(), SPEC, {"bridge_orig": bridge_stats()}, None)
    page = audit_page(report, ["bridge_octo_debug"])
    outline = Outline(page)
    for heading in ("Findings", "Frames", "Tasks", "Action scale", "Actions and states"):
        assert f"<h2>{heading}</h2>" in page
    assert outline.tags.count("img") == 4
    assert all(
        address.startswith(("#", "data:image/jpeg;base64,")) for address in outline.addresses
    )
    assert "script" not in outline.tags
    assert 'role="alert"' not in page


@needs_recordings
def test_problems_stand_before_everything_else() -> None:
    report = audit_episodes(planted("y inverted"), SPEC, {}, None)
    page = audit_page(report, ["bag"])
    assert "1 problem." in page
    assert page.index("inverted axis: y of the action runs backwards") < page.index("<nav")


def test_what_people_wrote_is_shown_and_not_obeyed() -> None:
    page = page_of("<script>alert(1)</script>")
    assert "script" not in Outline(page).tags
    assert "&lt;script&gt;" in page


def test_long_tables_are_cut_and_say_so() -> None:
    page = page_of(*[f"task {i}" for i in range(MOST_ROWS + 3)])
    assert page.count("3 more rows are in audit.json") == 2
