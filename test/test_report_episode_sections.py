from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from report_case import invented_records, write_replay

from openvla_ros.evaluation.report.charts import styles_of
from openvla_ros.evaluation.report.episode_sections import (
    MOST_ROWS,
    answered_episodes,
    episodes_section,
    path_section,
    series_section,
    worst_section,
)
from openvla_ros.evaluation.report.results import Results
from openvla_ros.evaluation.report.selection import digest

pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")


def results_of(tmp_path: Path, **variants: list) -> Results:
    return Results(tmp_path, write_replay(tmp_path, variants, findings=[]))


def test_an_episode_that_one_variant_lacks_is_shown_with_the_others(tmp_path: Path):
    results = results_of(tmp_path, base=invented_records(2, 6), int4=invented_records(1, 6))
    digests = {v: digest(results, v) for v in results.variants}
    answered = answered_episodes(results, digests)
    assert [list(episode.records) for episode in answered] == [["base", "int4"], ["base"]]
    body = series_section(results, answered[1:], styles_of(results.variants)).body_html
    assert body.count("</figure>") == 7 and "int4" not in body
    assert "(best): “put item 0 into the drawer”" in answered[0].heading


def test_a_path_leaves_out_the_same_steps_for_all_and_says_so(tmp_path: Path):
    base, other = invented_records(1, 8), invented_records(1, 8, seed=1)
    base[0].recorded[3] = other[0].recorded[3] = np.nan
    other[0].predicted[5] = np.nan
    results = results_of(tmp_path, base=base, int4=other)
    digests = {v: digest(results, v) for v in results.variants}
    answered = answered_episodes(results, digests)
    body = path_section(results, answered, styles_of(results.variants)).body_html
    assert body.count("</figure>") == 3
    assert "2\u00a0steps without a recording or an answer left out of all." in body
    kept = np.delete(np.arange(8), [3, 5])
    apart = 1000.0 * np.linalg.norm((base[0].predicted - base[0].recorded)[kept, :3].sum(axis=0))
    assert f"base ends {apart:.{max(0, 2 - int(np.floor(np.log10(apart))))}f}\u00a0mm" in body


def test_a_worst_step_has_both_actions_and_their_difference(tmp_path: Path):
    results = results_of(tmp_path, base=invented_records(1, 10))
    found = digest(results, "base")
    body = worst_section(results, {"base": found}).body_html
    assert body.count("<img ") == len(found.worst) == 2
    worst = found.worst[0]
    for number in (worst.recorded[0], worst.predicted[0], worst.predicted[0] - worst.recorded[0]):
        assert f"{1000.0 * number:+.1f}".replace("-", "−") in body
    assert f"step {worst.step}</span>" in body and "put item 0 into the drawer" in body


def test_of_many_episodes_the_worst_are_listed_and_the_number_is_said(tmp_path: Path):
    records = invented_records(1, 4)
    row = write_replay(tmp_path, {"base": records}, findings=[])["variants"]["base"]
    many = [
        {**row["per_episode"][0], "episode": f"e{i}", "translation_error": float(i)}
        for i in range(MOST_ROWS + 50)
    ]
    many.append({**many[0], "episode": "unrecorded", "translation_error": None})
    metrics = write_replay(tmp_path, {"base": records}, findings=[])
    metrics["variants"]["base"]["per_episode"] = many
    body = episodes_section(Results(tmp_path, metrics)).body_html
    assert f"{MOST_ROWS} of 251 episodes" in body
    assert body.count("<tr>") == MOST_ROWS + 1
    assert f">e{MOST_ROWS + 49}<" in body and ">e0<" not in body and "unrecorded" not in body


def test_several_variants_stand_beside_each_other(tmp_path: Path):
    fewer = [dataclasses.replace(invented_records(2, 6)[0])]
    body = episodes_section(results_of(tmp_path, base=invented_records(2, 6), int4=fewer)).body_html
    assert "Translation, base" in body and "Rotation, int4" in body
    assert body.count("n/a</td>") == 2
