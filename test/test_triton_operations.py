"""The GPU kernels against the same functions in plain torch.

OPENVLA_ROS_TEST_GPU=1 python -m pytest -m gpu      on an NVIDIA GPU
TRITON_INTERPRET=1 python -m pytest -m gpu          anywhere, as test_triton_interpreted.py does
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from openvla_ros.engine import torch_operations as plain
from openvla_ros.engine.language import Language
from openvla_ros.engine.low_bit import quantize
from openvla_ros.engine.operations import _of_module
from openvla_ros.engine.weights import LanguageWeights, LayerWeights

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU"),
]

# Triton's interpreter is NumPy: slow, and without bfloat16.
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float16 if INTERPRETED else torch.bfloat16
WIDTH, HIDDEN, HEADS, HEAD_DIM = (256, 384, 2, 128) if INTERPRETED else (1024, 2816, 8, 128)
VOCABULARY = 320 if INTERPRETED else 32064
EPS = 1e-6
#: Relative error of one product in 16 bits, and of one whose activations are rounded to fp8. The
#: interpreter loses the carry when it rounds up to a power of two: 1.96 becomes 1.
BF16, FP8 = 0.006, 0.15 if INTERPRETED else 0.07
KINDS = [None, "int8", "fp8", "int4"]
#: Candidates of a kernel: the one to beat, and others.
CANDIDATES = [0, 1, 2]


@pytest.fixture(scope="module")
def operations() -> Any:
    pytest.importorskip("triton", reason="needs Triton: pip install triton (Linux only)")
    if INTERPRETED:
        import interpreted_numbers

        interpreted_numbers.install()
    from openvla_ros.engine import triton_operations

    return triton_operations


@pytest.fixture
def fast(request: pytest.FixtureRequest, operations: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operations, with a certain candidate of each kernel where it is asked for."""
    from openvla_ros.engine import triton_choice

    wanted = getattr(request, "param", 0)

    def pick(key: object, runs: dict[str, Callable[[], Any]], device: object) -> str:
        return list(runs)[min(wanted, len(runs) - 1)]

    monkeypatch.setattr(triton_choice, "choose", pick)
    return operations


every_candidate = pytest.mark.parametrize("fast", CANDIDATES, indirect=True)


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=DTYPE, device=DEVICE)


def matrix(rows: int, columns: int, kind: str | None) -> Any:
    weight = random(rows, columns, scale=columns**-0.5)
    return quantize(weight, kind) if kind else weight


def assert_close(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    assert error < bound, f"relative error {error:.4f}"


@every_candidate
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 8] if INTERPRETED else [1, 3, 8])
def test_few_rows_through_a_layer(kind: str | None, rows: int, fast: Any) -> None:
    qkv, output = matrix(3 * WIDTH, WIDTH, kind), matrix(WIDTH, WIDTH, kind)
    gate_up, down = matrix(2 * HIDDEN, WIDTH, kind), matrix(WIDTH, HIDDEN, kind)
    gain, table = 1 + random(WIDTH, scale=0.1), random(50, WIDTH)
    ids = torch.arange(rows, device=DEVICE)
    x, normed = plain.embed_norm(ids, table, gain, EPS, qkv)
    fast_x, fast_normed = fast.embed_norm(ids, table, gain, EPS, qkv)
    assert torch.equal(x, fast_x)
    assert_close(fast.qkv(fast_normed, qkv), plain.qkv(normed, qkv), BF16)
    attended = random(rows, WIDTH)
    x, normed = plain.output_add_norm(attended, output, x, gain, EPS, gate_up)
    fast_x, fast_normed = fast.output_add_norm(attended, output, fast_x, gain, EPS, gate_up)
    assert_close(fast_x, x, BF16)
    hidden, fast_hidden = plain.gate_up(normed, gate_up), fast.gate_up(fast_normed, gate_up)
    assert_close(fast_hidden, hidden, 2 * BF16)
    head = matrix(VOCABULARY, WIDTH, None)
    x, normed = plain.down_add_norm(hidden, down, x, gain, EPS, head)
    fast_x, fast_normed = fast.down_add_norm(fast_hidden, down, fast_x, gain, EPS, head)
    assert_close(fast_x, x, 2 * BF16)
    logits, tokens = fast.head(fast_normed, head)
    assert_close(logits, plain.head(normed, head)[0], 3 * BF16)
    assert torch.equal(tokens, logits.argmax(dim=-1))


@every_candidate
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_and_among_eight(kind: str | None, fast: Any) -> None:
    qkv, output = matrix(3 * WIDTH, WIDTH, kind), matrix(WIDTH, WIDTH, kind)
    gate_up, down = matrix(2 * HIDDEN, WIDTH, kind), matrix(WIDTH, HIDDEN, kind)
    head = matrix(VOCABULARY, WIDTH, None)
    gain, table = 1 + random(WIDTH, scale=0.1), random(8, WIDTH)
    ids, attended = torch.arange(8, device=DEVICE), random(8, WIDTH)

    def layer(rows: slice) -> list[torch.Tensor]:
        x, normed = fast.embed_norm(ids[rows].clone(), table, gain, EPS, qkv)
        projected = fast.qkv(normed, qkv)
        x, normed = fast.output_add_norm(attended[rows].clone(), output, x, gain, EPS, gate_up)
        hidden = fast.gate_up(normed, gate_up)
        x, normed = fast.down_add_norm(hidden, down, x, gain, EPS, head)
        return [projected, hidden, x, fast.head(normed, head)[0]]

    together = layer(slice(0, 8))
    for i in [0, 7] if INTERPRETED else range(8):
        for alone, row in zip(layer(slice(i, i + 1)), together, strict=True):
            assert torch.equal(alone[0], row[i])


@every_candidate
@pytest.mark.parametrize("rows, position", [(1, 290), (3, 126), (8, 284), (8, 0), (1, 64), (8, 60)])
def test_attention_over_the_cache(rows: int, position: int, fast: Any) -> None:
    keys, values = random(HEADS, 1024, HEAD_DIM), random(HEADS, 1024, HEAD_DIM)
    fast_keys, fast_values = keys.clone(), values.clone()
    cosines, sines = tables()
    qkv = random(rows, 3 * HEADS * HEAD_DIM)
    place = torch.tensor([position], dtype=torch.int32, device=DEVICE)
    rest = (cosines, sines, 300, qkv)
    for _ in range(2):  # the second finds the counters as the first left them
        expected = plain.attend(qkv, keys, values, place, *rest)
        found = fast.attend(qkv, fast_keys, fast_values, place, *rest)
        assert_close(found, expected, BF16)
        assert torch.equal(keys, fast_keys)
        assert torch.equal(values, fast_values)
    for i in range(rows):
        alone = fast.attend(
            qkv[i : i + 1].contiguous(), fast_keys.clone(), fast_values.clone(), place + i, *rest
        )
        assert torch.equal(alone[0], found[i]), "a row's bits depend on its neighbours"


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    angles = 6.28 * torch.rand(1024, HEAD_DIM // 2, device=DEVICE).repeat(1, 2)
    return angles.cos().to(DTYPE), angles.sin().to(DTYPE)


@pytest.mark.parametrize(
    "kind, fp8",
    [(None, False), ("int8", False), ("int4", False), ("int4", True), ("fp8", True)],
)
def test_a_prompt_through_a_layer(
    kind: str | None, fp8: bool, fast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvla_ros.engine import triton_launch

    if fp8 and not INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 products need a GPU of the Ada generation or newer")
    monkeypatch.setattr(triton_launch, "_HAS_FP8", fp8)
    monkeypatch.setenv("OPENVLA_ROS_NEW_KERNELS", "1")
    bound = FP8 if fp8 else BF16
    qkv, output = matrix(3 * WIDTH, WIDTH, kind), matrix(WIDTH, WIDTH, kind)
    gate_up, down = matrix(2 * HIDDEN, WIDTH, kind), matrix(WIDTH, HIDDEN, kind)
    gain, x = 1 + random(WIDTH, scale=0.1), random(20 if INTERPRETED else 284, WIDTH)
    normed = plain.prompt_norm(x, gain, EPS, qkv)
    fast_normed = fast.prompt_norm(x, gain, EPS, qkv)
    projected, fast_projected = plain.qkv(normed, qkv), fast.qkv(fast_normed, qkv)
    assert_close(fast_projected, projected, bound)
    cosines, sines = tables()
    cache = [random(HEADS, 1024, HEAD_DIM) for _ in range(2)]
    fast_cache = [part.clone() for part in cache]
    queries = plain.store_prompt(projected, *cache, cosines, sines)
    fast_queries = fast.store_prompt(projected.clone(), *fast_cache, cosines, sines)
    assert torch.equal(queries, fast_queries)
    assert all(torch.equal(a, b) for a, b in zip(cache, fast_cache, strict=True))
    attended = plain.attend_prompt(queries, *cache)
    fast_x, fast_normed = fast.output_add_norm(attended, output, x, gain, EPS, gate_up)
    x, normed = plain.output_add_norm(attended, output, x, gain, EPS, gate_up)
    assert_close(fast_x, x, bound)
    fast_hidden = fast.gate_up(fast_normed, gate_up)
    hidden = plain.gate_up(normed, gate_up)
    expected = plain.down_add_norm(hidden, down, x, gain, EPS, qkv)[0]
    assert_close(fast.down_add_norm(fast_hidden, down, x, gain, EPS, qkv)[0], expected, bound)


@pytest.mark.parametrize("width", [1024, 1152])
@pytest.mark.parametrize("scaled", [False, True])
def test_residual_sum_and_layer_norm(width: int, scaled: bool, fast: Any) -> None:
    x, delta = random(9, width), random(9, width)
    scale = random(width) if scaled else None
    norm = torch.nn.LayerNorm(width, EPS, device=DEVICE, dtype=DTYPE)
    with torch.inference_mode():
        expected = plain.add_layer_norm(x, delta, scale, norm)
        found = fast.add_layer_norm(x, delta, scale, norm)
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1], BF16)


def small_language_model(kind: str | None) -> LanguageWeights:
    width, hidden, head_dim = 128, 256, 64
    layers = [
        LayerWeights(
            1 + random(width, scale=0.1),
            matrix(3 * width, width, kind),
            matrix(width, width, kind),
            1 + random(width, scale=0.1),
            matrix(2 * hidden, width, kind),
            matrix(width, hidden, kind),
        )
        for _ in range(2)
    ]
    cosines, sines = (table[:, :head_dim].contiguous() for table in tables())
    head, gain = matrix(192, width, None), 1 + random(width, scale=0.1)
    heads = width // head_dim
    return LanguageWeights(
        *(
            random(192, width),
            tuple(layers),
            gain,
            head,
            cosines,
            sines,
            EPS,
            heads,
            heads,
            head_dim,
        )
    )


@pytest.mark.parametrize("fast", CANDIDATES[:2], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_at_once_have_the_logits_of_one_id_after_another(kind: str | None, fast: Any) -> None:
    """Across the border of two blocks of cached positions, through a whole language model."""
    language = Language(small_language_model(kind), _of_module("triton", fast), 160)
    x, ids = random(126, 128), torch.tensor([3, 5, 7, 9], device=DEVICE)
    position = torch.tensor([len(x)], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode():
        language.prefill(x, wanted=2)
        together = language.step(ids, position, 140)[0]
        alone = [language.step(ids[i : i + 1], position + i, 140)[0] for i in range(len(ids))]
    assert torch.equal(torch.cat(alone), together)
    slow = Language(language.weights, _of_module("torch", plain), 160)
    slow.keys, slow.values = (
        language.keys,
        language.values,
    )  # the prompt's, as the kernels left them
    with torch.inference_mode():
        assert_close(together, slow.step(ids, position, 140)[0], 4 * BF16)
