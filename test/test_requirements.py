"""A quantization that the machine or the model cannot run is refused before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from openvla_ros import policy_loading
from openvla_ros.config.policy import QUANTIZATIONS
from openvla_ros.engine import requirements
from openvla_ros.engine.bench.profiles import bench_config
from openvla_ros.engine.requirements import require_quantization
from openvla_ros.errors import ConfigurationError, DependencyError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.policy import OpenVLAPolicy


def config(**text: Any) -> OpenVLAConfig:
    tiny = bench_config("tiny")
    return OpenVLAConfig(
        timm_model_ids=tiny.timm_model_ids,
        vit_specs=tiny.vit_specs,
        text_config=tiny.text_config.to_dict() | text,
    )


WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    """Pretend that there is a GPU."""
    device = torch.device("cuda:0")
    monkeypatch.setattr(requirements, "choose_device", lambda _: (device, "a test"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize("quantization", ["none", "fp8", "int8", "int4"])
def test_a_cpu_runs_every_mode_of_the_engine(quantization: str) -> None:
    require_quantization(quantization, config(**WIDE), "cpu")


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=", ".join(QUANTIZATIONS)):
        require_quantization("int3", config())


def test_fp8_needs_a_gpu_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "NVIDIA A100", (8, 0))
    with pytest.raises(ConfigurationError, match=r"A100 has 8\.0\. Use int8, or int4"):
        require_quantization("fp8", config(**WIDE))
    require_quantization("int8", config(**WIDE))
    gpu(monkeypatch, "NVIDIA L4", (8, 9))
    require_quantization("fp8", config(**WIDE))


def test_int4_needs_shapes_it_can_tile() -> None:
    with pytest.raises(ConfigurationError, match=r"multiples of 32 x 128.*\. Use int8 or fp8"):
        require_quantization("int4", config(hidden_size=64))


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "off"}, "engine's, which is off. Use engine auto, or nf4"),
        ({"adapter_mode": "attach"}, "no attached adapters. Use adapter_mode merge"),
    ],
)
def test_the_modes_of_the_engine_need_the_engine(
    quantization: str, given: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        require_quantization(quantization, config(**WIDE), **given)


def test_another_language_model_has_no_modes_of_the_engine() -> None:
    with pytest.raises(ConfigurationError, match=r"'llama', not 'mistral'\. Use nf4 or bnb_int8"):
        require_quantization("int8", config(model_type="mistral"))


def test_bitsandbytes_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DependencyError, match="fp8, int8 or int4, which need no library"):
        require_quantization("nf4", config())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantization": "int4"}, "multiples of 32 x 128"),
        ({"quantization": "int8", "engine": "off"}, "which is off"),
        ({"quantization": "int8", "exactness": "hf"}, "releases"),
        ({"exactness": "exact"}, "self, hf, approx"),
        ({"exactness": "approx", "engine": "off"}, "which only the engine can check"),
        ({"exactness": "approx", "quantization": "nf4"}, "which only the engine can check"),
    ],
)
def test_the_policy_refuses_before_it_loads(
    given: dict[str, str], said: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_load(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(policy_loading, "load_model", must_not_load)
    with pytest.raises(ConfigurationError, match=said):
        OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cpu", **given)
