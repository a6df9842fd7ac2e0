"""The whole report: what is in it, that it is one file, and that nothing obeys what is in a bag."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_case import STATS, invented_records, jpeg_of, write_replay

from openvla_ros.errors import ConfigurationError, DependencyError
from openvla_ros.evaluation.report import replay_report, write_report
from openvla_ros.model.action_stats import ActionStats
from openvla_ros.types import ActionSpec, Finding

pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")

ATTACK = "<script>alert(1)</script><img src=x onerror='alert(2)'>\" & co"
VOID = {"meta", "img", "br"}
FINDINGS = [
    Finding("pipeline", "colour order", "cannot be judged", "the probes were not run"),
    Finding("pipeline", "time shift", "none"),
    Finding("pipeline", "trivial answers", "1.2 ×", "no better than the action before", "warn"),
    Finding("pipeline", "gripper polarity", "inverted", ATTACK, "problem"),
]


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where an element is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    def attributes(self, *names: str) -> list[str]:
        return [value for _, attrs in self.tags for n, value in attrs.items() if n in names]


@pytest.fixture(scope="module")
def two_variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """A report on two variants, with markup in every text that comes from outside."""
    out = tmp_path_factory.mktemp("replay")
    base = invented_records(2, 12, late=1, source=ATTACK)
    base = [dataclasses.replace(r, instruction=f"{ATTACK} {i}") for i, r in enumerate(base)]
    other = invented_records(2, 12, error=1.0, seed=1, invalid=range(12), source=ATTACK)
    other = [
        dataclasses.replace(r, instruction=b.instruction) for r, b in zip(other, base, strict=True)
    ]
    metrics = write_replay(out, {"base": base, "int4": other}, findings=FINDINGS)
    metrics["command"] = metrics["variants"]["base"]["policy"]["checkpoint"] = ATTACK
    (out / "metrics.json").write_text(json.dumps(metrics))
    path = write_report(out)
    assert path == out / "report.html"
    names = sorted(p.name for p in out.iterdir())
    assert names == ["metrics.json", "records", "replay.json", "report.html"]
    return path.read_text(encoding="utf-8"), metrics


def test_nothing_is_loaded_and_nothing_runs(two_variants: tuple[str, dict]):
    text, _ = two_variants
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {t for t, _ in page.tags}
    assert not [n for _, attrs in page.tags for n in attrs if n.startswith("on")]
    assert all(v.startswith("data:image/jpeg;base64,") for v in page.attributes("src"))
    assert all(v.startswith("#") for v in page.attributes("href", "xlink:href"))
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert all(v.startswith("#") for v in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in text


def test_what_people_wrote_is_shown_and_not_obeyed(two_variants: tuple[str, dict]):
    text, _ = two_variants
    assert "<script" not in text and "onerror='" not in text.replace("onerror=&#x27;", "")
    assert Page(text).text.count(ATTACK) >= 8  # findings, instructions, sources, command


def test_ids_are_unique_and_every_reference_leads_somewhere(two_variants: tuple[str, dict]):
    page = Page(two_variants[0])
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {v[1:] for v in page.attributes("href", "xlink:href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", two_variants[0])) <= set(ids)


def test_verdicts_come_first(two_variants: tuple[str, dict]):
    text = two_variants[0]
    places = [
        text.index(f"<h2>{heading}</h2>")
        for heading in (
            "Findings",
            "Does the policy beat the baselines?",
            "Comparison of the variants",
            "Errors per axis",
            "Gripper",
            "Latency",
            "Predicted and recorded actions",
            "Integrated path",
            "Worst steps",
            "Episodes",
            "Where this comes from",
            "What the numbers mean",
        )
    ]
    assert places == sorted(places)
    items = [
        text.index(f"<strong>{f.item}</strong>") for f in reversed(FINDINGS[:2] + FINDINGS[2:])
    ]
    assert items[0] < items[1] < min(items[2:])
    assert "1 problem, 1 warning, 1 thing that could not be judged" in text


def test_the_numbers_of_the_file_are_in_the_page(two_variants: tuple[str, dict]):
    text, metrics = two_variants
    shown = Page(text).text.replace("\u00a0", " ")
    for name, variant in metrics["variants"].items():
        figures = variant["metrics"]
        assert f"{figures['translation_error']['mean']:.1f} mm" in shown, name
        assert f"{figures['latency_ms']['p50']:.0f} ms" in shown, name
        assert f"{variant['baselines']['zero']['translation_error']['mean']:.1f} mm" in shown
    assert "1 step (0.200 s) late" in shown
    assert "invalid tokens" in shown
    assert "31f090d05236101ebfc381b61c674dd4746d4ce0" in shown
    assert metrics["comparisons"][0]["verdict"] in shown


def test_every_picture_and_drawing_says_what_it_shows(two_variants: tuple[str, dict]):
    page = Page(two_variants[0])
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    drawings = [attrs for tag, attrs in page.tags if tag == "svg" and "aria-hidden" not in attrs]
    assert len(pictures) == 2 * 4 and all(attrs["alt"] for attrs in pictures)
    assert len(drawings) == 3 + 2 + 2 * 7 + 2 * 3 and all(a["aria-label"] for a in drawings)
    assert all(attrs["role"] == "img" for attrs in drawings)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path):
    write_replay(tmp_path, {"base": invented_records(1, 6)})
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert b"INCOMPLETE" not in first and b"Comparison of the variants" not in first


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on one episode without a recorded action; others could not be read."""
    out = tmp_path_factory.mktemp("replay")
    (record,) = invented_records(1, 6)
    record = dataclasses.replace(
        record,
        recorded=np.full_like(record.recorded, np.nan),
        worst_steps=np.zeros(0, np.int64),
        worst_frames=(),
    )
    problems = [f"bag_{i} is damaged" for i in range(70)]
    write_replay(out, {"base": [record]}, findings=[], problems=problems)
    return write_report(out).read_text(encoding="utf-8")


def test_an_incomplete_replay_says_so_before_anything_else(incomplete: str):
    places = [incomplete.index(s) for s in ("INCOMPLETE.", "bag_0 is damaged", "<nav", "<h2>")]
    assert places == sorted(places)
    assert "<title>Replay report (INCOMPLETE)</title>" in incomplete
    assert "and 20 more, all of them in metrics.json" in incomplete
    assert "bag_69" not in incomplete


def test_without_a_recording_every_error_is_na_with_a_reason(incomplete: str):
    text = Page(incomplete).text
    assert "no step has a recorded action to compare with" in text
    assert "nothing was recorded that it could be judged by" in text
    assert "No step has both a recorded action and a stored picture." in text
    assert "n/a: no step has a recorded action" in text
    assert not re.search(r"\bnan\b|\bNone\b(?!\.)", text)


def test_actions_of_an_unknown_layout_are_drawn_as_numbers(tmp_path: Path):
    stats = ActionStats("mine", STATS.q01[:5], STATS.q99[:5], np.ones(5, bool), "test")
    records = [
        dataclasses.replace(
            record,
            **{
                name: getattr(record, name)[:, :5]
                for name in ("recorded", "predicted", "normalized", "token_ids")
            },
        )
        for record in invented_records(1, 6)
    ]
    spec = ActionSpec("mine")
    write_replay(tmp_path, {"base": records}, findings=[], spec=spec, stats=stats)
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "number 4" in text and "number 5" not in text
    assert "its actions have 5 numbers" in text
    assert "dataset units" in text


def test_a_damaged_record_leaves_the_old_report(tmp_path: Path):
    write_replay(tmp_path, {"base": invented_records(1, 6)})
    (tmp_path / "report.html").write_text("old")
    next((tmp_path / "records" / "base").iterdir()).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ConfigurationError, match="is not a record"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.glob(".report.html.*"))


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_replay(tmp_path, {"base": invented_records(1, 2)}, findings=[])
    (tmp_path / "report.html").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(replay_report, "report_page", lambda _: "new")
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.glob(".report.html.*"))


def test_without_matplotlib_nothing_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match="plots"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_thousand_episodes_of_five_variants_stay_small(tmp_path: Path):
    records = invented_records(1000, 20)
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    frame = jpeg_of(noise)  # the largest that a picture of this size can be
    records = [dataclasses.replace(r, worst_frames=(frame,) * len(r.worst_steps)) for r in records]
    names = ["base", "nf4", "int4", "fp8", "crop"]
    write_replay(tmp_path, {"base": records}, findings=[])
    for name in names[1:]:
        (tmp_path / "records" / name).symlink_to("base")
    write_replay(tmp_path, dict.fromkeys(names, records), findings=[], write_all=False)
    path = write_report(tmp_path)
    size_mb = path.stat().st_size / 1e6
    text = Page(path.read_text(encoding="utf-8")).text.replace("\u00a0", " ")
    assert size_mb < 15.0, f"{size_mb:.1f} MB"
    assert "6 of 1,000 episodes" in text and "200 of 1,000 episodes" in text
    assert "9 of 20,000 steps" in text
