"""The report in a real browser: nothing is asked for, nothing complains, it is seen and printed.

Needs Debian's `chromium` (apt-get install chromium); no part of the package does.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_case import invented_records, write_replay

from openvla_ros.evaluation.report import write_report
from openvla_ros.evaluation.report.page import Section, html_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page without a network and return standard output and what the console said."""
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--proxy-server=127.0.0.1:9",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *options,
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout + "\n".join(console)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay")
    variants = {"base": invented_records(3, 20), "int4": invented_records(3, 20, seed=1, late=1)}
    write_replay(out, variants)
    return write_report(out)


@pytest.mark.parametrize("width", [1000, 400])
def test_it_is_seen_at_this_width_without_a_complaint(report: Path, tmp_path: Path, width: int):
    picture = tmp_path / "page.png"
    said = browse(
        report, tmp_path / "profile", f"--screenshot={picture}", f"--window-size={width},1600"
    )
    assert "CONSOLE" not in said, said
    pixels = np.asarray(Image.open(picture).convert("L"), np.float64)
    assert pixels.shape == (1600, width)
    inked = (pixels < 160).any(axis=1)
    assert inked[:200].any() and inked[1400:].any()
    assert 0.3 < inked.mean() < 0.98 and (pixels > 200).mean() > 0.5


@pytest.mark.parametrize("width", [1000, 400])
def test_it_is_no_wider_than_the_window(report: Path, tmp_path: Path, width: int):
    """A page cannot measure itself, since it runs no script: a frame around it does."""
    frame = tmp_path / "frame.html"
    content = html.escape(report.read_text(encoding="utf-8"))
    frame.write_text(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{content}" onload="'
        "document.title = 'width ' + this.contentDocument.documentElement.scrollWidth"
        '"></iframe>',
        encoding="utf-8",
    )
    dom = browse(frame, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=20000")
    measured = re.search(r"<title>width (\d+)</title>", dom)
    assert measured, dom[:300]
    assert int(measured[1]) <= width


def test_it_prints_on_several_light_sheets(report: Path, tmp_path: Path):
    sheets = tmp_path / "report.pdf"
    browse(report, tmp_path / "profile", f"--print-to-pdf={sheets}", "--no-pdf-header-footer")
    content = sheets.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 40


def test_the_console_would_tell_of_a_script_or_a_load(tmp_path: Path):
    page = tmp_path / "page.html"
    for fault in ("<script>1</script>", '<img src="https://example.org/a.png" alt="">'):
        page.write_text(html_page("t", [Section("s", fault)]), encoding="utf-8")
        said = browse(page, tmp_path / "profile", f"--screenshot={tmp_path / 'page.png'}")
        assert "Content Security Policy" in said, (fault, said)
