"""Golden source: openvla @ c8f03f4 with peft 0.11.1; counts of the paper and of public logs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replay_cases import shared_checkpoint
from safetensors.torch import load_file, save_file
from training_cases import CPU, made_up_batch, prepared_small_model, weights_of

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.checkpoint import read_config
from openvla_ros.model.random_weights import profile_config
from openvla_ros.training.config import STRATEGIES, DataConfig, FinetuneConfig, StrategyConfig
from openvla_ros.training.lora import _SumOfProducts, adapter_targets, adapter_tensors
from openvla_ros.training.objective import Objective
from openvla_ros.training.optimizer import build_optimizer, trained_parameters
from openvla_ros.training.strategies import PreparedModel, count_parameters, prepare_model

ROOT = Path(__file__).resolve().parent / "reference"
ADAPTER = ROOT / "checkpoints" / "A_lora_adapter"
NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
RUNNABLE = [
    pytest.param(name, marks=NEEDS_BITSANDBYTES if name == "qlora" else ()) for name in STRATEGIES
]
ENDS = (
    "language_model.model.embed_tokens.",
    "language_model.model.layers.1.",
    "language_model.lm_head.",
)
TRAINED = {
    "full": ("vision_backbone.", "projector.", "language_model."),
    "frozen_vision": ("projector.", "language_model."),
    "sandwich": ("vision_backbone.", "projector.", *ENDS),
    "last_layer": ENDS,
}


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("full", 7_188_124_608),
        ("last_layer", 465_051_648),
        ("frozen_vision", 6_760_443_904),
        ("sandwich", 914_236_352),
    ],
)
def test_counts_of_the_paper_for_the_first_release(name: str, trained: int) -> None:
    """Millions in the paper: 7188.1, 465.1, 6760.4, 914.2."""
    counts = count_parameters(profile_config("v01-7b"), StrategyConfig(name))
    assert counts == (trained, 7_188_124_608)


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_count_of_rank_32_on_the_released_model(name: str) -> None:
    counts = count_parameters(profile_config("7b"), StrategyConfig(name, lora_rank=32))
    assert counts == (110_828_288, 7_652_065_472)


def config_of(strategy: StrategyConfig) -> FinetuneConfig:
    data = DataConfig(mixture="bridge", mixture_folder="made up")
    return FinetuneConfig(base="made up", data=data, strategy=strategy)


def updated(prepared: PreparedModel, precision: str, steps: int = 2) -> list[float]:
    """Return the losses before each of some updates on one batch."""
    objective = Objective(prepared.model, ActionTokenizer(), precision=precision)
    optimizer = build_optimizer(trained_parameters(objective), config_of(StrategyConfig("lora")))
    losses = []
    for _ in range(steps):
        loss = objective(made_up_batch())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_updates_move_what_the_strategy_trains_and_nothing_else(name: str, precision: str) -> None:
    prepared = prepared_small_model(StrategyConfig(name, lora_rank=4), precision)
    before = weights_of(prepared)
    losses = updated(prepared, precision)
    assert losses[1] < losses[0]
    after = weights_of(prepared)
    moved = {n for n, weights in after.items() if not torch.equal(weights, before[n])}
    idle = set(prepared.uncomputed)
    if name in TRAINED:
        expected = {n for n in before if n.startswith(TRAINED[name])} - idle
    else:
        expected = {n for n in before if ".lora_" in n} - idle
    assert moved == expected
    assert all(after[n].dtype == torch.float32 for n in moved)
    frozen = {w.dtype for n, w in after.items() if n not in moved}
    packed = {torch.uint8} if name == "qlora" else set()
    assert frozen <= {getattr(torch, precision)} | packed


@pytest.mark.parametrize("name", RUNNABLE)
def test_weights_outside_the_computation_are_named(name: str) -> None:
    """They count as trained where the towers do, as in the reference."""
    uncomputed = prepared_small_model(StrategyConfig(name)).uncomputed
    assert bool(uncomputed) == (name not in ("frozen_vision", "last_layer"))
    parts = (".blocks.1.", ".norm.", ".attn_pool.")
    assert all(n.startswith("vision_backbone.") and any(p in n for p in parts) for n in uncomputed)


def test_new_adapters_change_nothing() -> None:
    batch = made_up_batch()
    plain = prepared_small_model(StrategyConfig("full"))
    adapted = prepared_small_model(StrategyConfig("lora"))
    losses = [Objective(p.model, ActionTokenizer())(batch)["loss"].item() for p in (plain, adapted)]
    assert abs(losses[0] - losses[1]) < 1e-6 * losses[0]


def test_new_adapters_are_drawn_as_the_reference_draws_them() -> None:
    prepared = prepared_small_model(StrategyConfig("lora", lora_rank=32))
    drawn = torch.cat([p.detach().flatten() for n, p in prepared.trained.items() if "lora_A" in n])
    assert abs(drawn.std().item() * 32 - 1) < 0.02
    assert abs(drawn.mean().item()) * 32 < 0.02
    assert all(not p.any() for n, p in prepared.trained.items() if "lora_B" in n)
    layers = [m for m in prepared.model.modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["default"] for layer in layers} == {0.5}
    again = prepared_small_model(StrategyConfig("lora", lora_rank=32))
    assert all(torch.equal(p, again.trained[n]) for n, p in prepared.trained.items())


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(4, None, 1.0), (32, 64.0, 2.0)])
def test_alpha_is_the_rank_but_at_most_16_unless_given(
    rank: int, alpha: float | None, scale: float
) -> None:
    strategy = StrategyConfig("lora", lora_rank=rank, lora_alpha=alpha)
    model = prepared_small_model(strategy).model
    assert model.language_model.lm_head.scaling["default"] == scale


def reference_model(folder: Path, precision: str = "float32") -> PreparedModel:
    """Return the golden model with the golden adapter, made by this package and PEFT's loader."""
    from peft.utils import set_peft_model_state_dict

    prepared = prepare_model(
        folder,
        read_config(folder),
        StrategyConfig("lora", lora_rank=4),
        device=CPU,
        precision=precision,
    )
    set_peft_model_state_dict(prepared.peft, load_file(ADAPTER / "adapter_model.safetensors"))
    return prepared


def test_adapters_sit_where_the_reference_has_them(reference_checkpoints: Path) -> None:
    prepared = reference_model(reference_checkpoints / "A_fused")
    ours = {name: tuple(t.shape) for name, t in adapter_tensors(prepared.peft).items()}
    golden = load_file(ADAPTER / "adapter_model.safetensors")
    assert ours == {name: tuple(t.shape) for name, t in golden.items()}
    targets = json.loads((ADAPTER / "adapter_config.json").read_text())["target_modules"]
    assert prepared.peft.peft_config["default"].target_modules == set(targets)


def test_an_adapted_model_answers_as_the_reference(reference_checkpoints: Path) -> None:
    golden = np.load(ROOT / "goldens" / "lora.npz")
    folder = reference_checkpoints / "A_fused"
    prepared = reference_model(folder)
    from PIL import Image

    from openvla_ros.model.processing import OpenVLAProcessor

    processor = OpenVLAProcessor.from_pretrained(folder, "pure")
    image = Image.open(ROOT / "images" / "img0_256.png").convert("RGB")
    inputs = processor(image, "put the carrot in the bowl")
    with torch.no_grad():
        logits, _ = prepared.model.eval().prefill(inputs.input_ids, inputs.pixel_values)
    expected = golden["first_step_action_row_logits_unmerged"]
    difference = np.abs(logits[0, 31744:32000].numpy() - expected).max()
    assert difference < 1e-4, f"logits differ by up to {difference:.2g}"


def adapter_gradients(prepared: PreparedModel, precision: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    objective = Objective(prepared.model, ActionTokenizer(), precision=precision)
    objective(made_up_batch())["loss"].backward()
    return {n: p.grad for n, p in trained_parameters(objective).items()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_adapters_without_casts_have_the_gradients_of_peft(
    precision: str, bound: float, dropout: float, reference_checkpoints: Path
) -> None:
    """Dropout included: the same numbers are drawn in the same order."""
    results = []
    for own in (True, False):
        prepared = reference_model(reference_checkpoints / "A_fused", precision)
        for module in prepared.model.modules():
            if hasattr(module, "lora_A"):
                if dropout:
                    module.lora_dropout["default"] = torch.nn.Dropout(dropout)
                if not own:
                    del module.forward  # the class's own is PEFT's
        results.append(adapter_gradients(prepared, precision))
    off = {
        name: ((results[0][name] - expected).norm() / expected.norm()).item()
        for name, expected in results[1].items()
    }
    worst = max(off, key=off.__getitem__)
    assert off[worst] < bound, f"the gradient of {worst} differs by {off[worst]:.2g} of itself"


@pytest.mark.parametrize("of_input", [True, False])
def test_the_product_with_its_adapter_has_the_gradient_of_its_formula(of_input: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, trained: bool = False) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_(trained)

    x, weight, bias = drawn(5, 6, trained=of_input), drawn(7, 6), drawn(7)
    a, b = drawn(2, 6, trained=True), drawn(7, 2, trained=True)
    found = _SumOfProducts.apply(x, weight, bias, a, b, 0.5)
    expected = x @ weight.t() + bias + 0.5 * (x @ a.t()) @ b.t()
    assert (found - expected).abs().max() < 1e-12
    assert torch.autograd.gradcheck(
        lambda *inputs: _SumOfProducts.apply(inputs[0], weight, bias, *inputs[1:], 0.5), (x, a, b)
    )


def test_chosen_targets_alone_are_adapted() -> None:
    strategy = StrategyConfig("lora", lora_targets=("q_proj", "v_proj"))
    prepared = prepared_small_model(strategy)
    assert {n.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for n in prepared.trained} == {
        "q_proj",
        "v_proj",
    }
    assert prepared.uncomputed == ()


def test_a_target_that_is_no_module_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"key_proj .* k_proj"):
        adapter_targets(prepared_small_model(StrategyConfig("full")).model, ("q_proj", "key_proj"))


@NEEDS_BITSANDBYTES
def test_qlora_packs_the_language_model_alone() -> None:
    import bitsandbytes

    prepared = prepared_small_model(StrategyConfig("qlora"), "bfloat16")
    packed = {
        name
        for name, module in prepared.model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    kinds = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    assert len(packed) == 2 * len(kinds)
    assert all(name.startswith("language_model.model.layers.") for name in packed)
    head = prepared.model.get_output_embeddings()
    assert head.base_layer.weight.dtype == torch.bfloat16


def test_trained_weights_begin_with_all_digits_of_the_files(tmp_path: Path) -> None:
    """Loading in bfloat16 first would round a float32 checkpoint."""
    folder = Path(shutil.copytree(shared_checkpoint(), tmp_path / "float32"))
    weights = load_file(folder / "model.safetensors")
    weights = {name: 1.001 * tensor.float() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    prepared = prepare_model(
        folder,
        read_config(folder),
        StrategyConfig("sandwich"),
        device=CPU,
        precision="bfloat16",
    )
    for name, parameter in prepared.model.named_parameters():
        if name in prepared.trained:
            assert torch.equal(parameter, weights[name]), name
        else:
            assert torch.equal(parameter, weights[name].bfloat16()), name
