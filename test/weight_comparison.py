"""Small checkpoints for tests of reading weights, and the comparison bit for bit."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch

from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.engine.weights import LanguageWeights
from openvla_ros.model.checkpoint import expected_shapes, load_model, read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.random_weights import profile_config, random_tensor
from openvla_ros.model.shards import write_shards

CPU = torch.device("cpu")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> OpenVLAForActionPrediction:
    """What transformers reads."""
    return load_model(folder, read_config(folder), device=CPU, dtype=dtype)


def write_narrow(folder: Path, seed: int = 0) -> Path:
    """Write weights and config.json: grouped heads, and a width that int4 can pack."""
    tiny = profile_config("tiny")
    text = tiny.text_config.to_dict() | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    config = OpenVLAConfig(
        timm_model_ids=tiny.timm_model_ids, vit_specs=tiny.vit_specs, text_config=text
    )
    shapes = expected_shapes(config)
    folder.mkdir(exist_ok=True)
    write_shards(
        folder, shapes, lambda key: random_tensor(key, shapes[key], config, seed), torch.bfloat16
    )
    config.save_pretrained(folder)
    return folder


def assert_same_model(
    found: OpenVLAForActionPrediction, expected: OpenVLAForActionPrediction
) -> None:
    ours, theirs = dict(found.state_dict()), dict(expected.state_dict())
    ours |= dict(found.named_buffers())
    theirs |= dict(expected.named_buffers())
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key
    assert found.training is expected.training is False


def assert_same_weights(found: LanguageWeights, expected: LanguageWeights) -> None:
    for field in fields(LanguageWeights):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "layers":
            for ours, theirs in zip(a, b, strict=True):
                for part in fields(theirs):
                    assert_same(getattr(ours, part.name), getattr(theirs, part.name))
        else:
            assert_same(a, b)


def assert_same(found: object, expected: object) -> None:
    if isinstance(expected, LowBitMatrix):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor) and found.dtype == expected.dtype
        assert found.shape == expected.shape
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (found, expected)]
        assert torch.equal(*bits)
    else:
        assert found == expected
