"""The engine returns the ids of the model it was made from, on every path and for every draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from openvla_ros.engine.bench.profiles import bench_config, random_model
from openvla_ros.engine.engine import Engine
from openvla_ros.engine.programs import Program
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.checkpoint import load_model, read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import ImageProcessor

ROOT = Path(__file__).resolve().parent / "reference"
CASES = json.loads((ROOT / "goldens" / "index.json").read_text())["cases"]
ACTION_ROWS = slice(31744, 32000)
CPU = torch.device("cpu")


def tiny_model() -> OpenVLAForActionPrediction:
    return random_model(bench_config("tiny"), CPU, torch.float32)


@pytest.fixture(scope="module")
def reference() -> OpenVLAForActionPrediction:
    return tiny_model()


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine(tiny_model())
    engine.passes_are_plain = True  # in float32, to far less than these margins
    return engine


def inputs(seed: int, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    length = length or 1 + seed % 80
    ids = torch.randint(3, 31000, (1, length), generator=generator)
    return ids, torch.randn(1, 6, 224, 224, generator=generator)


@pytest.fixture(scope="module")
def golden_engines(reference_checkpoints: Path) -> dict[str, Engine]:
    return {
        folder.name: Engine(
            load_model(folder, read_config(folder), device=CPU, dtype=torch.float32)
        )
        for folder in reference_checkpoints.iterdir()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_goldens_pass_through_the_engine(
    case: dict, golden_engines: dict[str, Engine], reference_checkpoints: Path
) -> None:
    golden = np.load(ROOT / "goldens" / case["file"])
    processor = ImageProcessor.from_pretrained(reference_checkpoints / case["checkpoint"])
    pixels = processor(Image.open(ROOT / "images" / case["image"]))[None]
    ids = torch.tensor(golden["ids_used"])[None]
    engine = golden_engines[case["checkpoint"]]
    generated = engine.generate_action_tokens(ids, pixels, 7)
    assert generated.token_ids == case["tokens"]
    difference = np.abs(generated.logits.numpy()[:, ACTION_ROWS] - golden["logits_action_rows"])
    assert difference.max() < 1e-4, f"logits of the action rows differ by {difference.max():.2g}"
    engine.margin = 0.0
    drafted = engine.verify_draft(ids, pixels, 7, case["tokens"])
    assert drafted.token_ids == case["tokens"]
    assert drafted.passes == 1


@pytest.mark.parametrize("length", [1, 2, 17, 80])
def test_ids_are_those_of_the_model_for_any_prompt_length(
    length: int, engine: Engine, reference: OpenVLAForActionPrediction
) -> None:
    for seed in range(3):
        ids, pixels = inputs(seed, length)
        expected = reference.generate_action_tokens(ids, pixels, 7)
        found = engine.generate_action_tokens(ids, pixels, 7)
        assert found.token_ids == expected.token_ids
        difference = float((found.logits - expected.logits).abs().max())
        assert difference < 5e-3, f"logits differ by up to {difference:.2g}"
        assert found.token_probabilities == pytest.approx(expected.token_probabilities, rel=1e-2)


def test_a_confirmed_draft_takes_one_pass_and_the_guard_a_second(engine: Engine) -> None:
    ids, pixels = inputs(5)
    plain = engine.generate_action_tokens(ids, pixels, 7)
    engine.margin = 0.0
    confirmed = engine.verify_draft(ids, pixels, 7, plain.token_ids)
    assert (confirmed.passes, confirmed.drafts_accepted, confirmed.guard_fired) == (1, 6, False)
    engine.margin = float("inf")
    guarded = engine.verify_draft(ids, pixels, 7, plain.token_ids)
    assert (guarded.passes, guarded.drafts_accepted, guarded.guard_fired) == (2, 6, True)
    assert guarded.token_ids == confirmed.token_ids == plain.token_ids


def test_calibration_finds_a_margin_far_below_the_logits(engine: Engine) -> None:
    ids, _ = inputs(0, 20)
    images = [inputs(seed, 20)[1] for seed in range(3)]
    margin = engine.calibrate(ids, images, 7)
    assert 0.0 < margin < 0.05, f"margin {margin:.2g} in float32"
    assert engine.margin == margin
    assert engine.differences is not None and engine.differences.images == 3
    engine.calibrate(ids, images, 7, within_s=0.0)
    assert engine.differences.images == 2, "two are always used"
    engine.passes_are_plain = True


def test_ids_outside_the_action_range_are_returned_as_they_are() -> None:
    """EOS and other ids are answers like any other: neither decoding nor drafts stop at them."""
    models = [tiny_model(), tiny_model()]
    with torch.no_grad():
        for model in models:
            head = model.language_model.lm_head.weight
            head[2] = 50 * head[31900]
            head[7] = -50 * head[31900]
    engine = Engine(models[1])
    engine.margin = 0.0
    seen = set()
    for seed in range(4):
        ids, pixels = inputs(seed)
        expected = models[0].generate_action_tokens(ids, pixels, 7).token_ids
        seen |= set(expected)
        assert engine.generate_action_tokens(ids, pixels, 7).token_ids == expected
        assert engine.verify_draft(ids, pixels, 7, expected).token_ids == expected
    assert seen & {2, 7}


def test_of_equal_logits_the_lowest_id_wins() -> None:
    model = tiny_model()
    with torch.no_grad():
        head = model.language_model.lm_head.weight
        head[31800:31900] = head[31800]
        head[31800:31900] *= 50
        head[31700] = -head[31800]  # whichever sign the product has, two rows are at the top
        head[31701] = head[31700]
    ids, pixels = inputs(3)
    assert set(Engine(model).generate_action_tokens(ids, pixels, 7).token_ids) <= {31800, 31700}


def test_the_model_itself_still_runs_on_the_fused_weights() -> None:
    model, untouched = tiny_model(), tiny_model()
    Engine(model)
    ids, pixels = inputs(1)
    expected = untouched.generate_action_tokens(ids, pixels, 7).token_ids
    assert model.generate_action_tokens(ids, pixels, 7).token_ids == expected


def test_fusing_holds_no_weight_twice() -> None:
    model = tiny_model()
    engine = Engine(model)
    attention = model.language_model.model.layers[0].self_attn
    mlp = model.language_model.model.layers[0].mlp
    layer = engine.language.weights.layers[0]
    for linear, fused in (
        (attention.q_proj, layer.qkv),
        (attention.v_proj, layer.qkv),
        (mlp.gate_proj, layer.gate_up),
        (mlp.up_proj, layer.gate_up),
    ):
        own = linear.weight.untyped_storage().data_ptr()
        assert own == fused.untyped_storage().data_ptr()


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_a_low_bit_engine_runs_its_own_weights_and_releases_the_others(quantization: str) -> None:
    """The engine's ids are those of the same network with the rounded weights put back."""
    model, rounded = tiny_model(), tiny_model()
    engine = Engine(model, quantization=quantization)
    for layer, weights in zip(
        rounded.language_model.model.layers, engine.language.weights.layers, strict=True
    ):
        _put_back(layer, weights)
    for seed in range(3):
        ids, pixels = inputs(seed)
        expected = rounded.generate_action_tokens(ids, pixels, 7)
        found = engine.generate_action_tokens(ids, pixels, 7)
        assert found.token_ids == expected.token_ids
    linears = [m for m in model.language_model.model.modules() if isinstance(m, nn.Linear)]
    assert all(linear.weight.numel() == 0 for linear in linears)


def _put_back(layer: nn.Module, weights: object) -> None:
    with torch.no_grad():
        attention, mlp = layer.self_attn, layer.mlp
        width = attention.q_proj.weight.shape[0]
        for linear, part in zip(
            (attention.q_proj, attention.k_proj, attention.v_proj),
            weights.qkv.dequantize().split(width),
            strict=True,
        ):
            linear.weight.copy_(part)
        both = weights.gate_up.dequantize()
        mlp.gate_proj.weight.copy_(both[0::2])
        mlp.up_proj.weight.copy_(both[1::2])
        attention.o_proj.weight.copy_(weights.output.dequantize())
        mlp.down_proj.weight.copy_(weights.down.dequantize())


def test_a_model_with_adapters_attached_is_refused_not_stripped_of_them() -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft: the extra `model`")
    adapted = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = tiny_model()
    peft.PeftModel(model, adapted)
    with pytest.raises(ConfigurationError, match="carry adapters"):
        Engine(model)


def test_models_the_engine_cannot_run_are_refused_with_the_reason() -> None:
    text = bench_config("tiny").text_config.to_dict() | {"model_type": "mistral"}
    tiny = bench_config("tiny")
    config = OpenVLAConfig(
        timm_model_ids=tiny.timm_model_ids, vit_specs=tiny.vit_specs, text_config=text
    )
    with pytest.raises(ConfigurationError, match="mistral"):
        Engine(OpenVLAForActionPrediction(config))
    with pytest.raises(ConfigurationError, match="int4 needs multiples of 32 x 128"):
        Engine(tiny_model(), quantization="int4")


def test_inputs_that_do_not_fit_are_refused(engine: Engine) -> None:
    _, pixels = inputs(0)
    with pytest.raises(ConfigurationError, match="Shorten the instruction"):
        engine.generate_action_tokens(torch.ones(1, 900, dtype=torch.int64), pixels, 7)
    ids, pixels = inputs(0)
    with pytest.raises(ConfigurationError, match="3 ids, the action 7"):
        engine.verify_draft(ids, pixels, 7, [1, 2, 3])


@pytest.mark.parametrize("outside", [-1, 32064])
def test_a_draft_of_ids_that_do_not_exist_is_refused(engine: Engine, outside: int) -> None:
    """It used to be an IndexError from inside torch."""
    ids, pixels = inputs(0)
    with pytest.raises(ConfigurationError, match=f"the id {outside}; ids are 0 to 32063"):
        engine.verify_draft(ids, pixels, 7, [*range(6), outside])


@pytest.mark.parametrize("stage", ["towers_ms", "pass_ms"])
def test_a_recording_that_fails_leaves_nothing_behind(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node tries once more after a full GPU: it must not replay half a program."""
    engine = Engine(tiny_model())
    ids, pixels = inputs(0)
    expected = engine.generate_action_tokens(ids, pixels, 7).token_ids
    engine._programs.clear()
    engine.graph_pool = (0, 1)  # as on a GPU
    full = [True]

    class Replay:
        def __init__(self, run: Callable[[], None]) -> None:
            self.replay = run

    def capture(program: Program, run: Callable[[], None]) -> Replay:
        if full[0] and run == program._stages[stage]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Replay(run)

    monkeypatch.setattr(Program, "_capture", capture)
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate_action_tokens(ids, pixels, 7)
    assert not engine._programs, "what other prompts recorded is given back, too"
    full[0] = False
    assert engine.generate_action_tokens(ids, pixels, 7).token_ids == expected
    assert len(engine._programs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("quantization", ["none", "fp8", "int8", "int4"])
def test_recorded_graphs_give_the_ids_of_launches_with_every_draft(quantization: str) -> None:
    device = torch.device("cuda")
    recorded, launched = (
        Engine(
            random_model(bench_config("small"), device, torch.bfloat16),
            quantization=quantization,
            use_graphs=use_graphs,
        )
        for use_graphs in (True, False)
    )
    ids, _ = inputs(0, 20)
    recorded.calibrate(ids, [inputs(100 + i, 20)[1] for i in range(8)], 7)
    assert recorded.passes_are_plain, "the kernels promise a row's bits among any others"
    for seed in range(20):
        ids, pixels = inputs(seed)
        plain = launched.generate_action_tokens(ids, pixels, 7)
        again = recorded.generate_action_tokens(ids, pixels, 7)
        assert again.token_ids == plain.token_ids
        assert torch.equal(again.logits, plain.logits)
        for right in range(8):
            draft = [t if i < right else t ^ 1 for i, t in enumerate(plain.token_ids)]
            found = recorded.verify_draft(ids, pixels, 7, draft)
            assert found.token_ids == plain.token_ids
            assert found.passes <= 7
