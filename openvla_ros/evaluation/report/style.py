"""The look of a page: one style sheet for screens light and dark, narrow and wide, and for paper.

Colours are the Okabe-Ito palette, which people with colour blindness can tell apart; whatever a
colour says, a word or a line style says as well.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --faint: #57606a; --line: #d0d7de; --paper: #ffffff; --card: #f6f8fa;
  --problem: #a6361c; --warn: #8a5a00; --ok: #0a6b52; --link: #0b5394;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --faint: #a3abb5; --line: #3b424b; --paper: #15181c; --card: #1e2329;
    --problem: #ff8f73; --warn: #f0b849; --ok: #5fd0ab; --link: #86b9f0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 72rem;
  font: 16px/1.5 system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 0.25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0.75rem; padding-top: 0.5rem;
     border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
p.subtitle, .note, figcaption, .reason { color: var(--faint); }
.note, figcaption { font-size: 0.9rem; }
a { color: var(--link); }
code { font: 0.9em "DejaVu Sans Mono", "Liberation Mono", monospace; }
pre { margin: 0.5rem 0; padding: 0.6rem 0.8rem; background: var(--card); white-space: pre-wrap;
      border: 1px solid var(--line); border-radius: 4px; font-size: 0.9rem; }
nav ul { list-style: none; margin: 0.75rem 0 0; padding: 0; display: flex; flex-wrap: wrap;
         gap: 0.15rem 1.1rem; font-size: 0.95rem; }
.notice { margin: 1rem 0; padding: 0.75rem 1rem; border: 3px solid var(--problem);
          border-radius: 6px; background: var(--card); }
.notice strong { color: var(--problem); font-size: 1.15rem; }
.notice ul { margin: 0.4rem 0 0; padding-left: 1.2rem; }

ul.findings { list-style: none; margin: 0.75rem 0; padding: 0; }
ul.findings li { margin: 0 0 0.5rem; padding: 0.45rem 0.8rem; background: var(--card);
                 border-left: 5px solid var(--level); border-radius: 3px; }
ul.findings .level { display: inline-block; min-width: 6.4rem; font-weight: 700;
                     color: var(--level); }
ul.findings .reason { display: block; font-size: 0.93rem; }
ul.findings li.ok, ul.findings li.open { padding: 0.15rem 0.8rem; margin-bottom: 0.25rem;
                                         font-size: 0.93rem; }
ul.findings li.ok .reason, ul.findings li.open .reason { display: inline; margin-left: 0.6rem; }
.problem { --level: var(--problem); } .warn { --level: var(--warn); } .ok { --level: var(--ok); }
.open { --level: var(--faint); }
span.problem, span.warn, span.ok { color: var(--level); font-weight: 600; white-space: nowrap; }

.scroll { overflow-x: auto; margin: 0.75rem 0 1.25rem; }
table { border-collapse: collapse; font-size: 0.93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 0.35rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; overflow-wrap: normal; }
thead th { border-bottom: 2px solid var(--faint); vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 5.5rem; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.side { display: flex; flex-wrap: wrap; gap: 0 2.5rem; } .side > * { min-width: 0; }
dl { margin: 0.75rem 0; columns: 2 24rem; column-gap: 2.5rem; font-size: 0.95rem; }
dl div { break-inside: avoid; padding-bottom: 0.6rem; }
dt { font-weight: 600; } dd { margin: 0; }

figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 0.2rem; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
p.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1.2rem; max-width: none; font-size: 0.9rem; }
p.legend svg { width: 44px; height: 10px; margin-right: 0.4rem; vertical-align: baseline; }
.figures { display: grid; gap: 1rem 1.25rem; margin: 0.75rem 0 1.25rem;
           grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.cards { display: grid; gap: 1rem; margin: 0.75rem 0 1.25rem;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; break-inside: avoid;
        background: var(--card); }
.card figcaption { padding: 0.5rem 0.75rem 0.6rem; margin: 0; color: var(--ink); }
.card img { aspect-ratio: 4 / 3; object-fit: contain; background: var(--line); }
.card .scroll { margin: 0.4rem 0 0; } .card tbody th { min-width: 0; }
.card table { font-size: 0.85rem; width: 100%; table-layout: fixed; }
.card th, .card td { padding: 0.1rem 0.2rem; overflow: hidden; }
.card tbody th { white-space: nowrap; } .card th:first-child { width: 28%; }
.card thead th { font-weight: 500; } .card span { white-space: normal; }

@media (max-width: 600px) {
  body { padding: 0.5rem 0.75rem 3rem; font-size: 15px; }
  th, td { padding: 0.25rem 0.45rem; }
}
@page { size: A4; margin: 14mm 12mm; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, caption, .legend, thead, thead + tbody > tr:first-child { break-after: avoid; }
  h2 { margin-top: 1.2rem; } h3 { margin-top: 1rem; }
  .together { break-inside: avoid; }
  .episode > *:not(:last-child) { break-after: avoid; }
  h2 + p { break-after: avoid; }
  ul.findings li, ul.findings li.ok, ul.findings li.open { font-size: 9pt; }
  .note, figcaption, ul.findings .reason { font-size: 8.5pt; }
  dl { font-size: 9pt; }
  tr, li, .card, .notice { break-inside: avoid; }
  thead { display: table-header-group; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; } th, td { padding: 0.15rem 0.4rem; }
  section.new-page { break-before: page; }
  ul.findings li, .card, pre, .notice { background: none; }
  ul.findings li { border-top: 1px solid var(--line); border-radius: 0; }
  .figures { grid-template-columns: repeat(3, 1fr); gap: 0.5rem; }
  .cards { grid-template-columns: repeat(3, 1fr); gap: 0.5rem; }
  .card table { font-size: 7.5pt; }
}
"""
