"""The comparison runs unattended and its JSON says what readers look for."""

from __future__ import annotations

import json

import pytest
import torch

from openvla_ros.engine.bench.comparison import Plan, compare
from openvla_ros.engine.bench.floors import _layer_shapes, _tower_flops
from openvla_ros.engine.bench.measure import agreement, summary
from openvla_ros.engine.bench.profiles import PROMPT_IDS, bench_config, random_model
from openvla_ros.errors import ConfigurationError


@pytest.fixture(scope="module")
def report() -> dict:
    saved: list[dict] = []
    plan = Plan(
        device="cpu",
        dtype="float32",
        calls=2,
        hf_calls=1,
        rounds=2,
        images=2,
        exactness_images=2,
        quantizations=("int8",),
    )
    report = compare(plan, log=lambda _: None, save=lambda partial: saved.append(dict(partial)))
    assert set(saved[-1]) < set(report), "nothing was saved on the way"
    return json.loads(json.dumps(report))


def test_every_variant_has_its_latencies_and_its_share_of_equal_ids(report: dict) -> None:
    names = {"hf_eager", "hf_sdpa", "hf_generate_sdpa", "ours_plain", "ours_int8"}
    assert set(report["variants"]) == names
    assert report["failed"] == {}
    for variant in report["variants"].values():
        assert variant["p50_ms"] <= variant["p90_ms"] <= variant["p99_ms"] <= variant["max_ms"]
        assert len(variant["round_p50_ms"]) == 2
        assert variant["floor_share"] > 0
    for name in names - {"ours_int8"}:  # float32: nothing may round to another id
        equal = report["variants"][name]["tokens_equal_reference"]
        assert equal == {"first_token": 1.0, "action": 1.0}


def test_drafts_stand_beside_plain_decoding_and_change_nothing(report: dict) -> None:
    drafts = report["drafts"]
    assert [point["right_drafts"] for point in drafts["latency"][:7]] == list(range(7))
    assert drafts["latency"][6]["mean_passes"] == 1.0
    assert drafts["exactness"]["mismatches"] == 0
    assert drafts["exactness"]["drafts"] == 4
    assert report["variants"]["ours_plain"]["calls"] == 4


def test_the_floor_adds_up_and_says_what_it_is(report: dict) -> None:
    floor = report["floor"]
    parts = floor["towers_ms"] + floor["prefill_ms"] + 6 * floor["step_ms"]
    assert floor["total_ms"] == pytest.approx(parts)
    assert "read rate" in floor["definition"]


def test_work_of_the_full_size_model_is_that_of_its_published_shape() -> None:
    """Operations of both towers as computed by hand, and the language model's 6.476e9 weights."""
    config = bench_config("7b")
    layers = config.text_config.num_hidden_layers
    assert layers * sum(n * k for n, k in _layer_shapes(config)) == 6_476_005_376
    dino, siglip = (_tower_flops(spec, 224) for spec in config.towers())
    assert dino == pytest.approx(158e9, rel=0.02)
    assert siglip == pytest.approx(211e9, rel=0.02)
    assert len(PROMPT_IDS) == 28


def test_the_same_weights_come_out_for_the_same_profile() -> None:
    cpu = torch.device("cpu")
    first, second = (
        random_model(bench_config("tiny"), cpu, torch.float32).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_statistics_of_calls() -> None:
    numbers = summary([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert (numbers["calls"], numbers["p50_ms"], numbers["max_ms"]) == (6, 3.5, 6.0)
    assert numbers["round_p50_ms"] == [2.0, 5.0]
    assert agreement([[1, 2], [1, 3], [4, 4]], [[1, 2], [1, 2], [5, 4]]) == {
        "first_token": pytest.approx(2 / 3),
        "action": pytest.approx(1 / 3),
    }


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'huge' is unknown"):
        bench_config("huge")
