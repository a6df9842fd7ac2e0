from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_cases import PAD, made_up_samples, prepared_small_model

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.training.activation_checkpointing import transformer_blocks
from openvla_ros.training.batch import EvaluationSample
from openvla_ros.training.config import StrategyConfig
from openvla_ros.training.free_running import SliceMetrics, evaluate_slice, generate_tokens
from openvla_ros.training.objective import Objective
from openvla_ros.training.samples import collate

TOKENIZER = ActionTokenizer()


@pytest.fixture(scope="module")
def objective() -> Objective:
    return Objective(prepared_small_model(StrategyConfig("full")).model, TOKENIZER)


def answers_one_by_one(objective: Objective, samples: list[EvaluationSample]) -> np.ndarray:
    answers = []
    for sample in samples:
        prompt = sample.sample.input_ids[sample.sample.labels == -100][None]
        pixels = sample.sample.pixel_values[None]
        answers.append(objective.model.generate_action_tokens(prompt, pixels, 7).token_ids)
    return np.array(answers)


def with_answers(samples: list[EvaluationSample], answers: np.ndarray) -> list[EvaluationSample]:
    """Return the samples as if these ids had been recorded."""
    changed = []
    for sample, ids in zip(samples, answers, strict=True):
        inner = sample.sample
        is_action = (inner.labels != -100) & (inner.labels != 2)
        input_ids, labels = inner.input_ids.clone(), inner.labels.clone()
        input_ids[is_action] = labels[is_action] = torch.from_numpy(ids)
        inner = replace(inner, input_ids=input_ids, labels=labels)
        changed.append(replace(sample, sample=inner, token_ids=ids))
    return changed


def evaluated(objective: Objective, samples: list[EvaluationSample]) -> SliceMetrics:
    return evaluate_slice(objective, samples, TOKENIZER, PAD, batch_size=3)


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batched_answers_are_those_of_the_deployed_decoding(strategy: str, batch_size: int) -> None:
    """Prompts of three lengths: none may be padded, for padding would move the action."""
    model = prepared_small_model(StrategyConfig(strategy)).model.eval()
    objective = Objective(model, TOKENIZER)
    samples = made_up_samples(8)
    expected = answers_one_by_one(objective, samples)
    assert len(np.unique(expected)) > 5, "the answers say nothing"
    assert np.array_equal(generate_tokens(objective, samples, batch_size), expected)


def test_a_slice_that_the_model_has_by_heart_scores_full_marks(objective: Objective) -> None:
    samples = made_up_samples(8)
    samples = with_answers(samples, answers_one_by_one(objective, samples))
    metrics = evaluated(objective, samples)
    assert metrics.free_running.accuracy == metrics.teacher_forced.accuracy == 1.0
    assert metrics.free_running.l1 == 0.0
    assert metrics.free_running.accuracy_per_dimension == (1.0,) * 7
    assert metrics.swapped_images_accuracy < 1.0, "images do not matter to this model"


def test_teacher_forcing_hides_an_error_that_free_running_carries_on(objective: Objective) -> None:
    """The first recorded id is not the model's; what follows depends on which of them it is fed."""
    samples = made_up_samples(8)
    answers = answers_one_by_one(objective, samples)
    answers[:, 0] = 31900
    samples = with_answers(samples, answers)
    metrics = evaluated(objective, samples)
    assert metrics.free_running.accuracy_per_dimension == (0.0, *(1.0,) * 6)
    assert metrics.teacher_forced.accuracy_per_dimension[0] == 0.0
    assert metrics.teacher_forced.accuracy != metrics.free_running.accuracy


def test_baselines_are_computed_from_the_recorded_ids(objective: Objective) -> None:
    samples = made_up_samples(6)  # two episodes, three steps each
    ids = np.full((6, 7), 31800)
    ids[3:, 0] = [31801, 31801, 31802]
    ids[5, 6] = 31999
    samples = with_answers(samples, ids)
    samples = [
        replace(s, previous_token_ids=None if index < 2 else ids[index - 2])
        for index, s in enumerate(samples)
    ]
    metrics = evaluated(objective, samples)
    assert metrics.constant.accuracy_per_dimension == (3 / 6, *(1.0,) * 5, 5 / 6)
    assert metrics.previous is not None
    assert metrics.previous.samples == 4
    assert metrics.previous.accuracy_per_dimension == (1 / 4, *(1.0,) * 5, 3 / 4)
    centers = TOKENIZER.decode(ids[:, 0])
    expected = np.abs(centers - TOKENIZER.decode([31800])).mean()
    assert abs(metrics.constant.l1_per_dimension[0] - expected) < 1e-12
    only_first = [replace(s, previous_token_ids=None) for s in samples]
    assert evaluated(objective, only_first).previous is None


def test_swapped_images_come_from_other_episodes(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = made_up_samples(9, episodes=3)
    episode_of = {s.sample.pixel_values.data_ptr(): s.sample.origin.episode for s in samples}
    shown: list[list[str]] = []

    def watched(*arguments, **options):
        images = arguments[3] if len(arguments) > 3 else None
        shown.append([episode_of[image.data_ptr()] for image in images or []])
        return generate_tokens(*arguments, **options)

    monkeypatch.setattr("openvla_ros.training.free_running.generate_tokens", watched)
    evaluated(objective, samples)
    assert [len(names) for names in shown] == [0, 9]
    own = [s.sample.origin.episode for s in samples]
    assert all(a != b for a, b in zip(own, shown[1], strict=True))
    assert len(set(shown[1])) == 3


def test_the_loss_of_a_slice_is_that_of_training(objective: Objective) -> None:
    for stop in (True, False):
        samples = made_up_samples(5, predict_stop_token=stop)
        expected = objective(collate([s.sample for s in samples], PAD))["loss"].item()
        assert abs(evaluated(objective, samples).loss - expected) < 1e-5 * expected


def test_evaluation_is_without_dropout_and_leaves_training_as_it_was() -> None:
    import json

    prepared = prepared_small_model(StrategyConfig("lora", lora_dropout=0.5))
    objective = Objective(prepared.model, TOKENIZER).train()
    samples = made_up_samples(4)
    state = torch.get_rng_state()
    first, second = evaluated(objective, samples), evaluated(objective, samples)
    assert first == second
    assert objective.training
    assert torch.equal(torch.get_rng_state(), state), "evaluation drew random numbers"
    assert json.loads(json.dumps(first.to_dict()))["free_running"]["samples"] == 4


def test_evaluation_compiles_nothing() -> None:
    """It would use up the number of shapes after which torch computes all others uncompiled."""
    prepared = prepared_small_model(StrategyConfig("lora"))
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        compiled.append(graph)
        return graph.forward

    for block in transformer_blocks(prepared.model):
        block.compile(backend=backend)
    objective = Objective(prepared.model, TOKENIZER).train()
    samples = made_up_samples(4)
    objective(collate([s.sample for s in samples], PAD))["loss"].backward()
    count = len(compiled)
    assert count > 0
    evaluated(objective, samples)
    assert len(compiled) == count
