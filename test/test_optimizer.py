from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from training_cases import prepared_small_model

from openvla_ros.training.config import (
    DataConfig,
    FinetuneConfig,
    OptimizationConfig,
    StrategyConfig,
)
from openvla_ros.training.moving_average import MovingAverage
from openvla_ros.training.optimizer import (
    build_optimizer,
    learning_rate_at,
    set_learning_rate,
    trained_parameters,
)


def config_of(strategy: str = "lora", **optimization) -> FinetuneConfig:
    return FinetuneConfig(
        base="made up",
        data=DataConfig(mixture="bridge", mixture_folder="made up"),
        strategy=StrategyConfig(strategy),
        optimization=OptimizationConfig(**optimization),
    )


def test_the_learning_rate_is_constant_from_the_first_step() -> None:
    assert {learning_rate_at(step, config_of()) for step in (0, 1, 9_999)} == {5e-4}
    assert learning_rate_at(0, config_of("full")) == 2e-5


@pytest.mark.parametrize(
    ("schedule", "halfway"), [("constant", 1.0), ("cosine", 0.5), ("linear", 0.5)]
)
def test_the_learning_rate_warms_up_and_falls(schedule: str, halfway: float) -> None:
    config = config_of(learning_rate=1.0, warmup_steps=10, max_steps=110, schedule=schedule)
    rates = [learning_rate_at(step, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(halfway)
    assert rates[110] == pytest.approx(1.0 if schedule == "constant" else 0.0)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    set_learning_rate(optimizer, rates[60])
    assert [group["lr"] for group in optimizer.param_groups] == [rates[60]]


def test_biases_and_norms_do_not_decay() -> None:
    prepared = prepared_small_model(StrategyConfig("full"))
    parameters = trained_parameters(prepared.model)
    optimizer = build_optimizer(parameters, config_of("full", weight_decay=0.1))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    decays = {name for name, parameter in parameters.items() if decay[id(parameter)] == 0.1}
    assert {"language_model.lm_head.weight", "vision_backbone.featurizer.pos_embed"} <= decays
    still = set(parameters) - decays
    assert {"language_model.model.norm.weight", "projector.fc1.bias"} <= still
    assert all(
        n.endswith(
            (
                ".bias",
                "norm.weight",
                "norm1.weight",
                "norm2.weight",
                "layernorm.weight",
                "scale_factor",
            )
        )
        for n in still
    )


def test_adapters_train_as_the_reference_does() -> None:
    prepared = prepared_small_model(StrategyConfig("lora"))
    optimizer = build_optimizer(prepared.trained, config_of())
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (5e-4, (0.9, 0.999), 1e-8)
    assert group["weight_decay"] == 0.01
    assert len(group["params"]) == len(prepared.trained)


def test_the_moving_average_is_the_weighted_sum_of_all_weights() -> None:
    parameters = {"w": torch.nn.Parameter(torch.tensor([1.0]))}
    average = MovingAverage(parameters, decay=0.75)
    expected = 1.0
    for value in (5.0, -3.0):
        parameters["w"].data.fill_(value)
        average.update()
        expected = 0.75 * expected + 0.25 * value
    assert average.averages["w"].item() == expected
    with average.applied():
        assert parameters["w"].item() == expected
    assert parameters["w"].item() == -3.0
    assert average.averages["w"].item() == expected


def test_the_moving_average_continues_from_a_saved_one() -> None:
    parameters = {"w": torch.nn.Parameter(torch.tensor([1.0, 2.0]))}
    average = MovingAverage(parameters, decay=0.9)
    average.restore({"w": torch.tensor([3.0, 4.0])})
    assert average.averages["w"].tolist() == [3.0, 4.0]
    assert parameters["w"].tolist() == [1.0, 2.0]
    with pytest.raises(AssertionError, match="other parameters"):
        average.restore({"v": torch.tensor([3.0, 4.0])})


def test_the_weights_come_back_when_an_evaluation_fails() -> None:
    parameters = {"w": torch.nn.Parameter(torch.tensor([1.0]))}
    average = MovingAverage(parameters, decay=0.9)
    average.restore({"w": torch.tensor([3.0])})
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert parameters["w"].item() == 1.0
