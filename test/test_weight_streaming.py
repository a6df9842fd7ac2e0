"""Reading a checkpoint straight into the engine's places gives the bits transformers loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_comparison import CPU, assert_same_model, assert_same_weights, loaded, write_narrow

from openvla_ros.engine import low_bit
from openvla_ros.engine.bench.profiles import bench_config
from openvla_ros.engine.streaming import stream, why_not_streamed
from openvla_ros.engine.weights import LanguageWeights, fuse_language_model
from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.model.checkpoint import empty_model, expected_shapes, load_model, read_config
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.shards import write_shards
from openvla_ros.policy import OpenVLAPolicy

GOLDEN = ("A_fused", "B_siglip_v01")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD = "language_model.lm_head.weight"


def streamed(
    folder: Path, dtype: torch.dtype = torch.float32, quantization: str = "none"
) -> tuple[OpenVLAForActionPrediction, LanguageWeights]:
    model = empty_model(read_config(folder), dtype)
    assert why_not_streamed(model, folder) is None
    weights, _ = stream(model, folder, device=CPU, quantization=quantization)
    return model, weights


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_narrow(tmp_path_factory.mktemp("narrow") / "checkpoint")


@pytest.fixture
def checkpoint(reference_checkpoints: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(reference_checkpoints / "B_siglip_v01", tmp_path / "checkpoint"))


def logits_of(model: OpenVLAForActionPrediction) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    backbone = model.vision_backbone
    side = model.config.image_sizes[0]
    pixels = torch.randn(1, backbone.channels, side, side, generator=generator).to(model.dtype)
    ids = torch.randint(3, 300, (1, 9), generator=generator)
    return model.generate_action_tokens(ids, pixels, 4).logits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GOLDEN)
def test_every_bit_is_what_transformers_loads(
    name: str, dtype: torch.dtype, reference_checkpoints: Path
) -> None:
    model, weights = streamed(reference_checkpoints / name, dtype)
    expected = loaded(reference_checkpoints / name, dtype)
    assert_same_model(model, expected)
    assert torch.equal(logits_of(model), logits_of(expected))
    assert_same_weights(weights, fuse_language_model(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_in_float32_become_any_format(
    dtype: torch.dtype, reference_checkpoints: Path, tmp_path: Path
) -> None:
    whole = loaded(reference_checkpoints / "A_fused")
    whole.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, _ = streamed(tmp_path, dtype)
    assert_same_model(model, loaded(tmp_path, dtype))


@pytest.mark.parametrize("quantization", low_bit.KINDS)
def test_matrices_rounded_while_reading_are_those_rounded_afterwards(
    quantization: str, narrow: Path
) -> None:
    model, weights = streamed(narrow, torch.bfloat16, quantization)
    expected = fuse_language_model(loaded(narrow, torch.bfloat16), quantization)
    assert_same_weights(weights, expected)
    linear = model.language_model.model.layers[1].mlp.down_proj
    assert linear.weight.shape == (0, 256)


def test_the_modules_are_views_into_the_fused_weights(narrow: Path) -> None:
    model, weights = streamed(narrow)
    layer = model.language_model.model.layers[1]
    for linear, fused in (
        (layer.self_attn.k_proj, weights.layers[1].qkv),
        (layer.self_attn.o_proj, weights.layers[1].output),
        (layer.mlp.up_proj, weights.layers[1].gate_up),
        (model.language_model.lm_head, weights.head),
    ):
        own = linear.weight.untyped_storage().data_ptr()
        assert own == fused.untyped_storage().data_ptr()


def tie(folder: Path, *, keep_head: bool) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["tie_word_embeddings"] = True
    path.write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    if not keep_head:
        tensors.pop(HEAD)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_head_that_is_the_embedding_is_read_once(checkpoint: Path) -> None:
    tie(checkpoint, keep_head=False)
    model, weights = streamed(checkpoint)
    assert weights.head.data_ptr() == weights.embedding.data_ptr()
    expected = loaded(checkpoint)
    assert_same_model(model, expected)
    assert torch.equal(logits_of(model), logits_of(expected))


def test_a_head_beside_the_embedding_it_should_be_is_left_to_transformers(
    checkpoint: Path,
) -> None:
    tie(checkpoint, keep_head=True)
    model = empty_model(read_config(checkpoint), torch.float32)
    assert "hold an output head" in (why_not_streamed(model, checkpoint) or "")
    policy = OpenVLAPolicy.from_pretrained(checkpoint, device="cpu")
    assert "read by transformers" in policy.info.choices["start-up"]
    assert "hold an output head" in policy.info.choices["start-up"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("projector.fc1.bias"), r"missing projector\.fc1\.bias"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected extra"),
        (
            lambda t: t.update({"projector.fc1.bias": torch.zeros(3)}),
            r"mis-shaped projector\.fc1\.bias \[3\] instead of \[32\]",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named_before_anything_is_read(
    checkpoint: Path, edit, words: str
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    edit(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    model = empty_model(read_config(checkpoint), torch.float32)
    with pytest.raises(CheckpointError, match=words):
        stream(model, checkpoint, device=CPU)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_mode_that_does_not_fit_is_refused_before_anything_is_read(tiny_checkpoint: Path) -> None:
    model = empty_model(read_config(tiny_checkpoint), torch.float32)
    with pytest.raises(ConfigurationError, match="int4 needs multiples of 32 x 128"):
        stream(model, tiny_checkpoint, device=CPU, quantization="int4")
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_policy_says_how_its_weights_were_read(
    reference_checkpoints: Path, reference_dir: Path
) -> None:
    folder = reference_checkpoints / "A_fused"
    told: list[tuple[int, int, str]] = []
    fast = OpenVLAPolicy.from_pretrained(folder, progress=lambda *args: told.append(args))
    assert " GB read in " in fast.info.choices["start-up"]
    assert told[-1][0] == told[-1][1] > 0
    off = OpenVLAPolicy.from_pretrained(folder, engine="off")
    assert "read by transformers in" in off.info.choices["start-up"]
    assert off.info.choices["start-up"].endswith("the engine is off")
    adapted = OpenVLAPolicy.from_pretrained(
        folder, adapter=reference_dir / "checkpoints" / "A_lora_adapter"
    )
    assert "an adapter is applied" in adapted.info.choices["start-up"]


PEAK = """
import json, sys
from pathlib import Path
import torch
from openvla_ros.engine.streaming import stream
from openvla_ros.model.checkpoint import empty_model, read_config

def resident(name):  # getrusage would tell the peak of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
model = empty_model(read_config(folder), dtype)
before = resident("VmRSS")
stream(model, folder, device=torch.device("cpu"))
weights = sum(parameter.nbytes for parameter in model.parameters())
print(json.dumps({"peak": resident("VmHWM") - before, "weights": weights}))
"""


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_reading_takes_hardly_more_memory_than_the_weights(dtype: str, tmp_path: Path) -> None:
    """All resident memory is counted, at its highest; files are read, so none of it is theirs."""
    config = bench_config("small")
    shapes = expected_shapes(config)
    write_shards(tmp_path, shapes, lambda key: torch.zeros(shapes[key]), torch.bfloat16)
    config.save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), dtype],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["weights"] > 400e6
    share = told["peak"] / told["weights"]
    assert share <= 1.15, f"peak {share:.3f} of the weights"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("quantization", ["none", *low_bit.KINDS])
def test_a_gpu_gets_the_bits_transformers_loads_there(quantization: str, narrow: Path) -> None:
    """The files hold bfloat16: it is converted on the GPU, and comes through page-locked memory."""
    device = torch.device("cuda:0")
    model = empty_model(read_config(narrow), torch.float16)
    weights, _ = stream(model, narrow, device=device, quantization=quantization)
    expected = load_model(narrow, read_config(narrow), device=device, dtype=torch.float16)
    assert_same_weights(weights, fuse_language_model(expected, quantization))
    assert model.device.type == "cuda" and not any(p.is_meta for p in model.parameters())
