"""A page of findings, tables and figures as one HTML file that needs nothing else.

What people wrote (instructions, paths) goes through `text`, so that it is shown and never obeyed;
only an `Html` is taken as it is. The page forbids its reader to load or run anything.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openvla_ros.evaluation.report.style import STYLE
from openvla_ros.types import Finding

#: No script, no style sheet, font, frame or picture from elsewhere: the browser holds us to it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

#: Level of a finding to the word before it, in the order of the list.
LEVELS = {"problem": "✖ Problem", "warn": "▲ Warning", "open": "– Not judged", "ok": "✔ OK"}
#: A finding of level "ok" that begins so was not looked at, which is no reason to be calm.
NOT_JUDGED = "cannot be judged"
_COUNTED = {
    "problem": ("problem", "problems"),
    "warn": ("warning", "warnings"),
    "open": ("thing that could not be judged", "things that could not be judged"),
    "ok": ("thing that is well", "things that are well"),
}

_NUMBER = re.compile(r"(n/a|[+−-]?\d[\d,]*(\.\d+)?)(\s|$|%|°)")


class Html(str):
    """Markup that was made here: everything else is escaped before it is shown."""


@dataclass(frozen=True)
class Section:
    """One chapter of a page.

    Attributes:
        heading: Plain text; the table of contents names it.
        body_html: Markup made by the functions of this file.
        on_new_page: Whether a print begins a sheet with it.
    """

    heading: str
    body_html: str
    on_new_page: bool = False


def text(value: object) -> Html:
    """Return the markup that shows `value`; an `Html` is returned as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def html_page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", notice_html: str = ""
) -> str:
    """Return the whole page.

    Args:
        title: Plain text, heading and name of the window.
        sections: In reading order.
        subtitle: Plain text under the title; an `Html` may be given.
        notice_html: What must be seen before anything else (`notice`).
    """
    anchors = _anchors([section.heading for section in sections])
    contents = "".join(
        f'<li><a href="#{anchor}">{text(section.heading)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    chapters = "\n".join(
        f'<section id="{anchor}"{_new_page(section)}>\n<h2>{text(section.heading)}</h2>\n'
        f"{section.body_html}\n</section>"
        for anchor, section in zip(anchors, sections, strict=True)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{text(title)}</h1>\n"
        + (f'<p class="subtitle">{text(subtitle)}</p>\n' if subtitle else "")
        + notice_html
        + f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n</header>\n'
        f"<main>\n{chapters}\n</main>\n</body>\n</html>\n"
    )


def findings_html(findings: Sequence[Finding]) -> Html:
    """Return the findings as a list: problems, warnings, what was not judged, what is well."""
    if not findings:
        return paragraph("Nothing was examined that could be found right or wrong.")
    order = list(LEVELS)
    rows = sorted(findings, key=lambda finding: order.index(_level(finding)))
    found = [(level, sum(_level(row) == level for row in rows)) for level in order]
    counts = [f"{n} {_COUNTED[level][n != 1]}" for level, n in found if n or level == "problem"]
    return Html(
        f"{paragraph(', '.join(counts).capitalize() + '.')}"
        f'<ul class="findings">\n{"".join(map(_finding, rows))}</ul>'
    )


def table_html(
    headings: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str = "",
    *,
    empty: str = "None.",
) -> Html:
    """Return a table; the first column names the rows, columns of numbers stand to the right.

    Args:
        headings: One per column.
        rows: Cells of plain text, numbers, or `Html`.
        caption: Plain text above the table.
        empty: Said in place of a table without rows.
    """
    cells = [list(row) for row in rows]
    assert all(len(row) == len(headings) for row in cells), (caption, headings)
    if not cells:
        return paragraph(f"{caption}: {empty}" if caption else empty)
    numeric = [all(_NUMBER.match(_plain(row[i])) for row in cells) for i in range(len(headings))]
    head = "".join(
        f'<th scope="col"{_alignment(right)}>{text(heading)}</th>'
        for heading, right in zip(headings, numeric, strict=True)
    )
    body = "".join(f"<tr>{_row(row, numeric)}</tr>\n" for row in cells)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    # A wide table scrolls by itself; the keyboard reaches it as well.
    return Html(
        f'<div class="scroll" tabindex="0"><table>{title}\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def figure_html(svg: str, caption: str, alt: str) -> Html:
    """Return a drawing with its caption.

    Args:
        svg: An `<svg>` element without script.
        caption: Plain text under it; an `Html` may be given.
        alt: What the drawing shows, for those who do not see it.
    """
    assert svg.startswith("<svg"), svg[:40]
    labelled = f'<svg role="img" aria-label="{html.escape(alt)}"{svg[len("<svg") :]}'
    return Html(f"<figure>{labelled}<figcaption>{text(caption)}</figcaption></figure>")


def figures_html(figures: Iterable[str]) -> Html:
    """Return figures side by side, as many as the width allows."""
    return Html(f'<div class="figures">\n{"".join(figures)}\n</div>')


def side_by_side(parts: Iterable[str]) -> Html:
    """Return tables in one row where the width allows."""
    return Html(f'<div class="side">\n{"".join(f"<div>{part}</div>" for part in parts)}\n</div>')


def episode_html(parts: Iterable[str], *, on_one_sheet: bool) -> Html:
    """Return what belongs to one episode; a print keeps its heading with what follows.

    Args:
        parts: Heading first.
        on_one_sheet: Whether a print does not tear it apart at all.
    """
    kind = "episode together" if on_one_sheet else "episode"
    return Html(f'<div class="{kind}">\n{"".join(parts)}</div>\n')


def paragraph(words: object, kind: str = "") -> Html:
    """Return one paragraph; `kind` "note" is small print."""
    return Html(f"<p{f' class={kind!r}' if kind else ''}>{text(words)}</p>\n")


def subheading(words: object) -> Html:
    """Return a heading within a section."""
    return Html(f"<h3>{text(words)}</h3>\n")


def definitions_html(entries: Iterable[tuple[object, object]]) -> Html:
    """Return terms with what they mean."""
    pairs = "".join(
        f"<div><dt>{text(term)}</dt><dd>{text(meaning)}</dd></div>\n" for term, meaning in entries
    )
    return Html(f"<dl>\n{pairs}</dl>")


def notice(title: str, words: str, points: Sequence[str] = ()) -> Html:
    """Return a box that nobody overlooks: a title in bold, a sentence, and points."""
    listed = "".join(f"<li>{text(point)}</li>" for point in points)
    return Html(
        f'<div class="notice" role="alert"><strong>{text(title)}</strong> {text(words)}'
        + (f"<ul>{listed}</ul>" if listed else "")
        + "</div>\n"
    )


def verdict(words: object, level: str) -> Html:
    """Return words in the colour of a level: "ok", "warn" or "problem"; "" is plain.

    They stay on one line.
    """
    assert level in ("", *LEVELS), level
    return Html(f'<span class="{level}">{text(words)}</span>') if level else text(words)


def _level(finding: Finding) -> str:
    is_open = finding.level == "ok" and finding.value.startswith(NOT_JUDGED)
    return "open" if is_open else finding.level


def _finding(finding: Finding) -> str:
    level = _level(finding)
    value = f": {text(finding.value)}" if finding.value else ""
    section = f"{text(finding.section)} · " if finding.section else ""
    reason = f'<span class="reason">{text(finding.reason)}</span>' if finding.reason else ""
    return (
        f'<li class="{level}"><span class="level">{LEVELS[level]}</span> '
        f"{section}<strong>{text(finding.item)}</strong>{value}{reason}</li>\n"
    )


def _row(row: Sequence[object], numeric: Sequence[bool]) -> str:
    first = f'<th scope="row"{_alignment(numeric[0])}>{text(row[0])}</th>'
    return first + "".join(
        f"<td{_alignment(right)}>{text(cell)}</td>"
        for cell, right in zip(row[1:], numeric[1:], strict=True)
    )


def _alignment(right: bool) -> str:
    return ' class="number"' if right else ""


def _plain(cell: object) -> str:
    return re.sub(r"<[^>]*>", "", cell) if isinstance(cell, Html) else str(cell)


def _new_page(section: Section) -> str:
    return ' class="new-page"' if section.on_new_page else ""


def _anchors(headings: Sequence[str]) -> list[str]:
    """Return a name for each section: its words, with a number where they repeat."""
    anchors: list[str] = []
    for heading in headings:
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        taken = sum(1 for anchor in anchors if anchor == slug or anchor.startswith(f"{slug}--"))
        anchors.append(f"{slug}--{taken + 1}" if taken else slug)
    return anchors
