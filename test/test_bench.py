"""The comparison runs unattended, and its JSON says what readers look for."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from openvla_ros.engine.bench import catalogue, plots, processes, tokens
from openvla_ros.engine.bench.catalogue import Setting, choose
from openvla_ros.engine.bench.command import main
from openvla_ros.engine.bench.comparison import compare
from openvla_ros.engine.bench.drafts import wrong_after
from openvla_ros.engine.bench.floors import Rates, floor_of, layer_shapes, tower_flops
from openvla_ros.engine.bench.measure import summary
from openvla_ros.engine.bench.plan import Amounts, Plan, make_plan
from openvla_ros.engine.bench.processes import SeparateSessions, choose_processes
from openvla_ros.engine.bench.profiles import PROMPT_IDS, bench_config, random_model
from openvla_ros.engine.bench.report import markdown
from openvla_ros.errors import ConfigurationError, DependencyError

CPU = torch.device("cpu")
LEAST = asdict(Amounts(2, 2, 2, 2, 2, 2, 2, 0))
VARIANTS = ("hf_eager", "hf_sdpa", "hf_generate_sdpa", "ours_plain", "ours_int8")
PROMISED = {
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "max_ms",
    "tokens_equal_reference",
    "peak_bytes",
    "stages_ms",
    "share_of_floor",
    "cold_start",
}


def tiny(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Setting:
    return Setting(bench_config("tiny"), torch.device(device), dtype)


@pytest.fixture(scope="module")
def saved() -> list[dict]:
    return []


@pytest.fixture(scope="module")
def report(saved: list[dict]) -> dict:
    plan = make_plan("tiny", CPU, only=VARIANTS, processes="shared", amounts=LEAST)
    report = compare(plan, lambda _: None, lambda part: saved.append(json.loads(json.dumps(part))))
    return json.loads(json.dumps(report, allow_nan=False))


def test_every_variant_has_what_the_json_promises(report: dict) -> None:
    assert tuple(report["variants"]) == VARIANTS
    assert report["failed"] == {}
    for variant in report["variants"].values():
        assert set(variant) >= PROMISED
        assert variant["p50_ms"] <= variant["p90_ms"] <= variant["p99_ms"] <= variant["max_ms"]
        assert variant["calls"] == 4
        assert len(variant["round_p50_ms"]) == 2
        assert variant["share_of_floor"] > 0
        assert set(variant["cold_start"]) >= {"draw_weights_s", "build_s", "second_call_s"}
    assert set(report["machine"]) >= {"cpu", "cores", "threads", "torch", "transformers", "commit"}


def test_in_float32_every_unquantised_variant_gives_the_same_ids(report: dict) -> None:
    assert report["reference"] == "hf_eager"
    for name in VARIANTS[:-1]:
        assert report["variants"][name]["tokens_equal_reference"] == 1.0, name
        assert report["margins"]["variants"][name]["mismatches"] == 0, name
    matrix = report["mismatches"]
    assert matrix["variants"] == list(VARIANTS)
    assert [row[i] for i, row in enumerate(matrix["actions"])] == [0.0] * len(VARIANTS)


def test_the_report_is_saved_while_it_grows(report: dict, saved: list[dict]) -> None:
    with_numbers = [part for part in saved if part["variants"]]
    assert len(with_numbers) > 2
    assert with_numbers[0]["variants"]["hf_sdpa"]["calls"] == 2, "nothing before the last round"
    assert set(with_numbers[0]["variants"]["ours_plain"]) >= PROMISED
    assert "drafts" not in with_numbers[0]
    assert saved[-1] == report


def test_drafts_stand_beside_plain_decoding_and_change_nothing(report: dict) -> None:
    drafts = report["drafts"]
    names = [point["right_drafts"] for point in drafts["latency"]]
    assert names == ["plain", *range(7), "all, guard off"]
    assert drafts["latency"][0]["mean_passes"] == 7.0
    assert drafts["latency"][-1]["mean_passes"] == 1.0
    assert "No rate in Hz follows" in drafts["warning"]
    assert drafts["exactness"]["mismatches"] == 0
    assert drafts["exactness"]["drafts"] == 4
    assert wrong_after([5, 6, 7], 1) == [5, 7, 6]


def test_what_is_left_out_says_why() -> None:
    _, skipped = choose(tiny(), (), ("hf_eager",))
    assert skipped["hf_eager"] == "not asked for"
    assert skipped["ours_int4"] == "int4 needs multiples of 32 x 128, the matrix is 192 x 64"
    assert "expands fp8" in skipped["ours_fp8"]
    assert "GPUs only" in skipped["hf_torchao_int4wo"] or "not inst" in skipped["hf_torchao_int4wo"]


def test_a_package_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    _, skipped = choose(tiny(), (), ())
    assert skipped["hf_bnb_nf4"] == skipped["hf_bnb_int8"] == "bitsandbytes is not installed"
    assert skipped["hf_torchao_int8wo"] == "torchao is not installed"


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    _, skipped = choose(tiny(), (), ())
    assert "C++ compiler" in skipped["hf_static_compile"]


def test_names_of_stock_variants_begin_with_hf() -> None:
    names = [entry.name for entry in catalogue.catalogue()]
    assert len(set(names)) == len(names)
    assert {name for name in names if not name.startswith("hf_")} == {
        "ours_plain",
        "ours_int8",
        "ours_fp8",
        "ours_int4",
    }
    assert {"hf_static_compile", "hf_bnb_nf4", "hf_bnb_int8", "hf_torchao_int4wo"} < set(names)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: the extra `quant`"
)
def test_bitsandbytes_linears_answer_like_the_network_they_were_made_of() -> None:
    """nf4 and int8 round; a layer that was forgotten, or doubled, would do more than that."""
    setting = tiny(torch.bfloat16)
    ids, pixels = torch.tensor([PROMPT_IDS]), torch.zeros(1, 6, 224, 224)
    exact = random_model(setting.config, CPU, setting.dtype)
    expected = exact.prefill(ids, pixels)[0]
    for name in ("bnb_nf4", "bnb_int8"):
        model = random_model(setting.config, CPU, setting.dtype)
        catalogue.stock_low_bit.CONVERSIONS[name].convert(model)
        found = model.prefill(ids, pixels)[0]
        error = float((found - expected).norm() / expected.norm())
        assert 0.0 < error < 0.5, f"{name}: relative error {error:.3f}"


def test_the_floor_is_bytes_over_rate_and_operations_over_rate() -> None:
    """openvla-7b on an H200, against the numbers computed by hand from its published shape."""
    config = bench_config("7b")
    layers = config.text_config.num_hidden_layers
    weights = layers * sum(n * k for n, k in layer_shapes(config))
    assert weights == 6_476_005_376
    dino, siglip = (tower_flops(spec, 224) for spec in config.towers())
    assert dino == pytest.approx(158e9, rel=0.02)
    assert siglip == pytest.approx(211e9, rel=0.02)
    rates = Rates(4.3e12, 790e12, None)
    floor = floor_of(config, len(PROMPT_IDS), 6, rates, torch.bfloat16)
    head = 32064 * 4096
    assert floor.decode_ms == pytest.approx(6e3 * 2 * (weights + head) / 4.3e12)
    assert floor.prefill_ms == pytest.approx(1e3 * 2 * 284 * weights / 790e12)
    assert floor.total_ms == pytest.approx(23.8, rel=0.01)
    low = floor_of(config, len(PROMPT_IDS), 6, rates, torch.bfloat16, "int8")
    assert low.decode_ms == pytest.approx(6e3 * (weights + 2 * head) / 4.3e12)
    assert floor.shares({"prefill_ms": 1.0, "copy_ms": 1.0}) == {"prefill_ms": floor.prefill_ms}


def test_a_float32_copy_names_the_margin_of_every_differing_id() -> None:
    model = random_model(bench_config("tiny"), CPU, torch.float32)
    ids, pixels = torch.tensor([PROMPT_IDS]), torch.zeros(1, 6, 224, 224)
    plain = model.generate_action_tokens(ids, pixels, 7)
    judge = tokens.Judge(model, ids, [pixels])
    top = plain.logits.topk(2).values
    found = judge.margins([plain.token_ids])
    assert (found["ids"], found["mismatches"]) == (7, 0)
    margins = [margin for margin, _ in found["points"]]
    assert margins == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-2)
    wrong = [*plain.token_ids[:-1], plain.token_ids[-1] ^ 1]
    found = judge.margins([wrong])
    assert found["mismatches"] == 1
    assert found["largest_margin_of_a_mismatch"] == pytest.approx(margins[-1], abs=1e-3)


def test_equality_counts_whole_actions_and_first_ids() -> None:
    ours, theirs = [[1, 2], [1, 3], [4, 4]], [[1, 2], [1, 2], [5, 4]]
    assert tokens.equal_actions(ours, theirs) == pytest.approx(1 / 3)
    assert tokens.equal_first_ids(ours, theirs) == pytest.approx(2 / 3)
    assert tokens.mismatches({"a": ours, "b": theirs})["actions"][0][1] == pytest.approx(2 / 3)


def test_statistics_of_calls() -> None:
    numbers = summary([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert (numbers["calls"], numbers["p50_ms"], numbers["max_ms"]) == (6, 3.5, 6.0)
    assert numbers["round_p50_ms"] == [2.0, 5.0]


def test_the_same_weights_come_out_for_the_same_profile() -> None:
    first, second = (
        random_model(bench_config("tiny"), CPU, torch.float32).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_twins_share_every_weight_and_nothing_else() -> None:
    models = catalogue.Models(tiny())
    first, second = models.twin("eager"), models.twin("sdpa")
    assert first.language_model.config._attn_implementation == "eager"
    assert second.language_model.config._attn_implementation == "sdpa"
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()


def test_plans_are_filled_in_and_survive_the_way_to_a_process() -> None:
    plan = make_plan("small", CPU, "bfloat16", skip=("hf_eager",), amounts={"rounds": 7})
    assert (plan.amounts.rounds, plan.why_dtype) == (7, "requested")
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert make_plan("7b", CPU).only == ("hf_sdpa", "ours_plain", "ours_int8")
    assert make_plan("7b", CPU).dtype == "bfloat16"
    assert make_plan("tiny", CPU).only == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "huge"}, "'huge' is unknown"),
        ({"profile": "tiny", "dtype": "int3"}, "'int3' is unknown"),
        ({"profile": "tiny", "processes": "many"}, "'many' is unknown"),
        ({"profile": "tiny", "amounts": {"calls": 0}}, "calls is 0; give at least 1"),
        ({"profile": "tiny", "amounts": {"margin_images": -1}}, "give at least 0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_plan(device=CPU, **arguments)


def test_an_unknown_variant_is_named_and_nothing_left_is_said() -> None:
    with pytest.raises(ConfigurationError, match="'hf_egger' is unknown; use hf_eager, "):
        choose(tiny(), ("hf_egger",), ())
    with pytest.raises(ConfigurationError, match="ours_int4: int4 needs multiples"):
        choose(tiny(), ("ours_int4",), ())


def test_processes_are_separate_where_memory_does_not_hold_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries, _ = choose(tiny(), ("hf_sdpa", "ours_plain"), ())
    plan = make_plan("tiny", CPU)
    assert choose_processes(plan, tiny(), entries)[0] is False
    monkeypatch.setattr(processes.Memory, "free", lambda self: 1_000_000)
    separate, why = choose_processes(plan, tiny(), entries)
    assert separate
    assert "0.0 GB are free" in why
    forced = make_plan("tiny", CPU, processes="shared")
    assert choose_processes(forced, tiny(), entries) == (False, "requested")


def test_a_process_for_each_variant_reports_like_one_for_all(monkeypatch) -> None:
    plan = make_plan(
        "tiny",
        CPU,
        only=("hf_sdpa", "ours_plain"),
        processes="separate",
        amounts=LEAST | {"exactness_images": 0},
    )
    children = []

    def run_here(child: Plan) -> dict:
        children.append(child)
        found = processes.run_child(child, choose(tiny(), child.only, child.skip)[0])
        return json.loads(json.dumps(found))

    monkeypatch.setattr(processes, "_run_child", run_here)
    report = compare(plan, lambda _: None, lambda _: None)
    assert [child.only[0] for child in children] == ["hf_sdpa", "ours_plain"] * 2
    assert report["variants"]["ours_plain"]["calls"] == 4
    assert len(report["variants"]["hf_sdpa"]["round_p50_ms"]) == 2
    assert report["drafts"]["latency"][0]["mean_passes"] == 7.0
    assert "skipped" in report["margins"]


def test_a_process_that_dies_is_a_failed_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('no room')"]
    run = subprocess.run
    monkeypatch.setattr(
        processes.subprocess, "run", lambda command, **options: run(broken, **options)
    )
    session = SeparateSessions(make_plan("tiny", CPU, amounts=LEAST), lambda _: None)
    session.prepare(choose(tiny(), ("hf_sdpa",), ())[0])
    assert list(session.rounds()) == [0, 1]
    assert session.failed == {"hf_sdpa": "its process ended with 1: no room"}


def test_tables_hold_every_variant(report: dict) -> None:
    text = markdown(report)
    for name in VARIANTS:
        assert f"| `{name}` | {report['variants'][name]['p50_ms']:.2f} |" in text
    assert "No rate in Hz follows" in text
    assert report["floor"]["definition"] in text
    assert "`hf_bnb_nf4` was left out: not asked for" in text
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| variant |"))
    columns = {line.count("|") for line in lines[first : first + 2 + len(VARIANTS)]}
    assert len(columns) == 1, "a row has more or fewer cells than its header"


def test_plots_are_drawn_of_a_whole_report(report: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: the extra `plots`")
    paths = plots.draw_plots(report, tmp_path / "plots")
    names = {path.name for path in paths}
    assert names == {f"tiny_{kind}.png" for kind in ("latency", "stages", "drafts", "margins")}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 100_000


def test_a_plot_says_what_was_measured_and_bars_begin_at_zero(
    report: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages' axis used to begin where the first stage ended."""
    figure = pytest.importorskip(
        "matplotlib.figure", reason="plots need matplotlib: the extra `plots`"
    )
    drawn = {}
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, path, **_: drawn.update({path.stem: self.axes[0]})
    )
    plots.draw_plots(report, tmp_path)
    assert all(axes.get_title().startswith("profile tiny, ") for axes in drawn.values())
    assert drawn["tiny_stages"].get_xlim()[0] == 0
    assert drawn["tiny_latency"].get_xlim()[0] == 0


def test_plots_without_matplotlib_are_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match="plots"):
        plots.require_matplotlib()
    assert main(["--plots", str(tmp_path)]) == 1
    assert "Plots need matplotlib" in capsys.readouterr().err


def test_the_command_writes_json_and_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "new" / "bench.json", tmp_path / "bench.md"
    amounts = "--calls 1 --rounds 1 --images 1 --draft-images 0 --margin-images 0".split()
    arguments = ["--only", "ours_plain", "--device", "cpu", *amounts]
    assert main([*arguments, "--json", str(out), "--markdown", str(table)]) == 0
    report = json.loads(out.read_text())
    assert list(report["variants"]) == ["ours_plain"]
    assert math.isfinite(report["variants"]["ours_plain"]["p50_ms"])
    assert table.read_text() in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["bench.json"]


def test_the_command_lists_variants_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(catalogue.catalogue())
    assert any(line.startswith("ours_fp8: ") and "left out here" in line for line in lines)


def test_json_needs_no_library_for_people() -> None:
    """The bench runs on machines that have torch and transformers, and nothing else."""
    code = (
        "import sys; import openvla_ros.engine.bench.command; "
        "print(*{'typer', 'rich', 'matplotlib', 'timm', 'cv2', 'bitsandbytes', 'rclpy'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == []
