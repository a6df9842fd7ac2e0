from __future__ import annotations

import sys

import pytest
import torch

from openvla_ros.errors import ConfigurationError, DependencyError, DeviceError
from openvla_ros.model import runtime_choices
from openvla_ros.model.runtime_choices import (
    available_ram_bytes,
    choose_attention,
    choose_device,
    choose_dtype,
    quantization_config,
)

CPU = torch.device("cpu")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@needs_no_gpu
def test_without_a_gpu_auto_is_the_cpu_and_says_why() -> None:
    device, reason = choose_device("auto")
    assert device == CPU
    assert "CUDA" in reason


@needs_no_gpu
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DeviceError, match="cuda:0"):
        choose_device("cuda:0")


def test_a_word_that_is_no_device_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="auto, cpu"):
        choose_device("gpu please")


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_that_is_not_supported_is_an_error(device: str) -> None:
    with pytest.raises(ConfigurationError, match="auto, cpu"):
        choose_device(device)


def test_a_cpu_computes_exactly_when_memory_allows() -> None:
    assert choose_dtype("auto", CPU, parameters=10)[0] is torch.float32
    dtype, reason = choose_dtype("auto", CPU, parameters=10**15)
    assert dtype is torch.bfloat16
    assert "GiB" in reason


def test_a_requested_dtype_is_kept_and_an_unknown_one_refused() -> None:
    assert choose_dtype("bfloat16", CPU) == (torch.bfloat16, "requested")
    with pytest.raises(ConfigurationError, match="float32"):
        choose_dtype("fp8", CPU)


def test_no_quantisation_needs_no_library() -> None:
    assert quantization_config("none", torch.bfloat16) is None


def test_an_unknown_quantisation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="nf4, bnb_int8"):
        quantization_config("int3", torch.bfloat16)


def test_a_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DependencyError, match="pip install bitsandbytes"):
        quantization_config("nf4", torch.bfloat16)


def test_free_memory_is_zero_where_the_system_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_ram_bytes() > 0

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(runtime_choices.os, "sysconf", unknown)
    assert available_ram_bytes() == 0
    assert choose_dtype("auto", CPU, parameters=10**15)[0] is torch.float32


def test_an_unknown_attention_is_refused_with_the_known_ones() -> None:
    assert choose_attention()[0] == "sdpa"
    with pytest.raises(ConfigurationError, match="sdpa, eager"):
        choose_attention("flash_attention_2")
