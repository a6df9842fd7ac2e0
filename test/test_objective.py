from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training_cases import made_up_batch, prepared_small_model

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.training import auxiliary
from openvla_ros.training.activation_checkpointing import checkpoint_activations, compile_blocks
from openvla_ros.training.auxiliary import build_auxiliary_losses, register_auxiliary_loss
from openvla_ros.training.batch import TrainingBatch
from openvla_ros.training.config import CHECKPOINTING, StrategyConfig
from openvla_ros.training.objective import Objective, spread_of_bins
from openvla_ros.training.optimizer import trained_parameters


def gradients(objective: Objective) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in trained_parameters(objective).items()}


@pytest.mark.parametrize("stop", [True, False])
def test_the_loss_is_that_of_all_positions_with_a_mask(stop: bool) -> None:
    """Logits where no label is, and the mask of right padding, change nothing but the time."""
    prepared = prepared_small_model(StrategyConfig("full"))
    batch = made_up_batch(predict_stop_token=stop)
    objective = Objective(prepared.model, ActionTokenizer())
    positions = []
    head = prepared.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: positions.append(len(inputs[0])))
    loss = objective(batch)["loss"]
    hook.remove()
    assert positions == [3 * (8 if stop else 7)]
    loss.backward()
    ours = gradients(objective)
    prepared.model.zero_grad()
    whole = prepared.model(
        batch.input_ids,
        batch.pixel_values,
        attention_mask=batch.attention_mask.long(),
        labels=batch.labels,
    ).loss
    whole.backward()
    assert abs(loss.item() - whole.item()) < 2e-6 * whole.item()
    for name, expected in gradients(objective).items():
        difference = (ours[name] - expected).norm() / expected.norm().clamp_min(1e-12)
        assert difference < 1e-4, f"the gradient of {name} differs by {difference:.2g} of itself"


def test_metrics_count_action_ids_only() -> None:
    prepared = prepared_small_model(StrategyConfig("last_layer"))
    batch = made_up_batch()
    objective = Objective(prepared.model, tokenizer := ActionTokenizer())
    predicted, losses = objective.predict(batch)
    labels = batch.labels[batch.labels != -100].numpy()
    is_action = labels != 2
    predicted = predicted.numpy()
    numbers = objective(batch)
    expected = (predicted == labels)[is_action].mean()
    assert abs(numbers["action_accuracy"].item() - expected) < 1e-6
    distance = abs(tokenizer.decode(predicted) - tokenizer.decode(labels))[is_action].mean()
    assert abs(numbers["l1"].item() - distance) < 1e-9
    assert abs(losses.mean().item() - numbers["loss"].item()) < 1e-5


def test_bfloat16_is_near_float32_and_keeps_the_masters() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        for name in ("full", "frozen_vision", "lora"):
            prepared = prepared_small_model(StrategyConfig(name), precision)
            objective = Objective(prepared.model, ActionTokenizer(), precision=precision)
            loss = objective(made_up_batch())["loss"]
            assert loss.dtype == torch.float32
            loss.backward()
            losses[name, precision] = loss.item()
            formats = {p.grad.dtype for p in prepared.trained.values()}
            assert formats == {torch.float32}, f"{name}: gradients are {formats}"
    for name in ("full", "frozen_vision", "lora"):
        exact, rounded = losses[name, "float32"], losses[name, "bfloat16"]
        assert abs(rounded / exact - 1) < 0.02, f"{name}: {rounded} instead of {exact}"


@pytest.mark.parametrize("name", ["full", "lora"])
def test_checkpointing_changes_neither_gradients_nor_names(name: str) -> None:
    """Dropout is drawn again as it was."""
    results = {}
    for mode in CHECKPOINTING:
        prepared = prepared_small_model(StrategyConfig(name, lora_dropout=0.2))
        keys = list(prepared.model.state_dict())
        checkpoint_activations(prepared.model, mode)
        assert list(prepared.model.state_dict()) == keys
        objective = Objective(prepared.model, ActionTokenizer())
        torch.manual_seed(3)
        objective(made_up_batch())["loss"].backward()
        results[mode] = gradients(objective)
    for mode in ("selective", "full"):
        for key, expected in results["none"].items():
            assert torch.equal(results[mode][key], expected), f"{mode}: {key}"


def test_checkpointing_keeps_less() -> None:
    kept = {}
    for mode in CHECKPOINTING:
        prepared = prepared_small_model(StrategyConfig("full"))
        checkpoint_activations(prepared.model, mode)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            Objective(prepared.model, ActionTokenizer())(made_up_batch())
        kept[mode] = sum(sizes.values())
    assert kept["full"] < kept["selective"] < kept["none"], kept


def test_an_unknown_kind_of_checkpointing_is_refused() -> None:
    prepared = prepared_small_model(StrategyConfig("full"))
    with pytest.raises(ConfigurationError, match="none, selective, full"):
        checkpoint_activations(prepared.model, "some")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_compiled_blocks_give_the_same_gradients(name: str) -> None:
    results = []
    for compiled in (False, True):
        prepared = prepared_small_model(StrategyConfig(name))
        keys = list(prepared.model.state_dict())
        if compiled:
            compile_blocks(prepared.model)
        assert list(prepared.model.state_dict()) == keys
        objective = Objective(prepared.model, ActionTokenizer())
        objective(made_up_batch())["loss"].backward()
        results.append(gradients(objective))
    for key, expected in results[0].items():
        difference = (results[1][key] - expected).norm()
        assert difference <= 1e-4 * expected.norm() + 1e-7, f"{key} differs by {difference:.2g}"


class MeanOfHidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, 1)

    def forward(self, hidden: torch.Tensor, batch) -> torch.Tensor:
        assert hidden.shape[:2] == (len(batch), 16 + batch.input_ids.shape[1])
        return self.map(hidden.float()).square().mean()


@pytest.fixture
def mean_of_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auxiliary, "_FACTORIES", {})
    register_auxiliary_loss(
        "mean_of_hidden", lambda config: MeanOfHidden(config.text_config.hidden_size)
    )


def test_an_auxiliary_loss_enters_with_its_weight_and_trains(mean_of_hidden: None) -> None:
    prepared = prepared_small_model(StrategyConfig("lora"))
    losses = build_auxiliary_losses({"mean_of_hidden": 0.5}, prepared.model.config)
    objective = Objective(prepared.model, ActionTokenizer(), losses)
    numbers = objective(made_up_batch())
    expected = numbers["cross_entropy"] + 0.5 * numbers["auxiliary/mean_of_hidden"]
    assert torch.equal(numbers["loss"].detach(), expected)
    assert numbers["auxiliary/mean_of_hidden"].item() > 0
    numbers["loss"].backward()
    own = {n: p for n, p in trained_parameters(objective).items() if n.startswith("auxiliary.")}
    assert len(own) == 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())
    assert not any("auxiliary" in name for name in prepared.trained)


def test_an_auxiliary_loss_nobody_registered_is_refused(mean_of_hidden: None) -> None:
    config = prepared_small_model(StrategyConfig("lora")).model.config
    with pytest.raises(ConfigurationError, match=r"next_state .* known are mean_of_hidden"):
        build_auxiliary_losses({"next_state": 1.0}, config)
    with pytest.raises(ConfigurationError, match="letters"):
        register_auxiliary_loss("next.state", lambda _: nn.Identity())
    assert build_auxiliary_losses({}, config) is None


def test_spread_labels_forgive_neighbours_and_keep_the_order() -> None:
    """Rows are normal distributions; a stop token keeps its one label."""
    prepared = prepared_small_model(StrategyConfig("last_layer"))
    batch = made_up_batch(predict_stop_token=True)
    tokenizer = ActionTokenizer()
    plain = Objective(prepared.model, tokenizer)
    narrow = Objective(prepared.model, tokenizer, label_spread=0.05)
    wide = Objective(prepared.model, tokenizer, label_spread=4.0)
    assert abs(plain(batch)["loss"].item() - narrow(batch)["loss"].item()) < 1e-5
    assert wide(batch)["loss"].item() != pytest.approx(plain(batch)["loss"].item(), abs=1e-4)
    spread = spread_of_bins(256, 4.0)
    assert torch.allclose(spread.sum(dim=1), torch.ones(256))
    assert spread[100].argmax() == 100 and spread[100, 104] == pytest.approx(
        spread[100, 100].item() * math.exp(-0.5), rel=1e-5
    )
    with torch.no_grad():
        expected = _spread_by_hand(wide, batch, spread)
    assert wide(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def _spread_by_hand(objective: Objective, batch: TrainingBatch, spread: torch.Tensor) -> float:
    logits = objective.model(batch.input_ids, batch.pixel_values).logits
    patches = logits.shape[1] - batch.input_ids.shape[1]
    first = objective.tokenizer.vocab_size - objective.tokenizer.n_action_bins
    losses = []
    for row, column in (batch.labels[:, 1:] != -100).nonzero().tolist():
        logs = logits[row, column + patches].float().log_softmax(-1)
        label = int(batch.labels[row, column + 1])
        if label < first:
            losses.append(-logs[label].item())
        else:
            losses.append(-(spread[label - first] * logs[first : first + 256]).sum().item())
    return sum(losses) / len(losses)
