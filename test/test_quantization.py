"""bitsandbytes modes, which also run on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openvla_ros.policy import OpenVLAPolicy

pytest.importorskip("bitsandbytes", reason="quantised loading needs the extra quant")

MODES = {"nf4": "Linear4bit", "bnb_int8": "Linear8bitLt"}
INSTRUCTION = "pick up the cup"


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_language_model_is_quantised(mode: str, tiny_checkpoint: Path) -> None:
    policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, quantization=mode, dtype="bfloat16")
    quantised = {n for n, m in policy.model.named_modules() if type(m).__name__ == MODES[mode]}
    assert len(quantised) == 3 * 7  # layers x (q, k, v, o, gate, up, down)
    assert all(name.startswith("language_model.model.layers.") for name in quantised)
    assert policy.model.projector.fc1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_a_quantised_policy_predicts_and_is_never_moved(
    mode: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.to()` on such a model raises in some versions and ruins the weights in others."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a quantised model was moved")

    from openvla_ros.model.modeling import OpenVLAForActionPrediction

    monkeypatch.setattr(OpenVLAForActionPrediction, "to", refuse)
    policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, quantization=mode, dtype="bfloat16")
    policy.self_test()
    prediction = policy.predict_action(image(), INSTRUCTION)
    assert len(prediction.token_ids) == 7
    assert np.isfinite(prediction.action).all()


def test_an_adapter_is_attached_beside_quantised_weights(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    plain = OpenVLAPolicy.from_pretrained(tiny_checkpoint, quantization="nf4", dtype="bfloat16")
    tuned = OpenVLAPolicy.from_pretrained(
        tiny_checkpoint, quantization="nf4", dtype="bfloat16", adapter=adapter
    )
    assert "attached" in tuned.info.choices["adapter"]
    before, after = (policy.predict_action(image(), INSTRUCTION) for policy in (plain, tuned))
    assert before.token_ids != after.token_ids


def write_adapter(folder: Path) -> Path:
    """A LoRA on the first attention output, large enough to change every answer."""
    from peft import LoraConfig

    folder.mkdir()
    module = "base_model.model.language_model.model.layers.0.self_attn.o_proj"
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            f"{module}.lora_A.weight": torch.randn(2, 64, generator=generator),
            f"{module}.lora_B.weight": torch.randn(64, 2, generator=generator),
        },
        folder / "adapter_model.safetensors",
    )
    LoraConfig(r=2, lora_alpha=2, target_modules=["o_proj"]).save_pretrained(str(folder))
    return folder
