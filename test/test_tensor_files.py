"""Bytes of safetensors files reach the places they are meant for, or nobody uses them."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openvla_ros.errors import CheckpointError
from openvla_ros.model import tensor_files
from openvla_ros.model.tensor_files import TensorReader, read_header

CPU = torch.device("cpu")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(37, 24, generator=generator),
        "half": torch.randn(37, 24, generator=generator).to(torch.bfloat16),
        "patches": torch.randn(8, 3, 2, 2, generator=generator).to(torch.float16),
        "scalar": torch.tensor(3.5),
        "levels": torch.randint(-128, 128, (5, 7), dtype=torch.int8, generator=generator),
        "fp8": torch.randn(9, 4, generator=generator).to(torch.float8_e4m3fn),
        "nothing": torch.empty(0, 4),
    }


@pytest.fixture
def path(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "some.safetensors", metadata={"said": "so"})
    return tmp_path / "some.safetensors"


@pytest.mark.parametrize("chunk_bytes", [64, 1000, 2**20])
def test_every_tensor_is_read_in_pieces_of_any_size(
    chunk_bytes: int,
    tensors: dict[str, torch.Tensor],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", chunk_bytes)
    header = read_header(path)
    assert header.metadata == {"said": "so"}
    places = {key: torch.empty_like(tensor) for key, tensor in tensors.items()}
    with TensorReader(header.tensors, CPU) as reader:
        reader.read(places)
    for key, tensor in tensors.items():
        found, expected = (t.reshape(-1).view(torch.uint8) for t in (places[key], tensor))
        assert torch.equal(found, expected), key


@pytest.mark.parametrize("chunk_bytes", [64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_alternate_with_others_are_converted_into_their_places(
    dtype: torch.dtype,
    chunk_bytes: int,
    tensors: dict[str, torch.Tensor],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", chunk_bytes)
    both = torch.full((37, 2, 24), 7.0, dtype=dtype)
    with TensorReader(read_header(path).tensors, CPU) as reader:
        reader.read({"matrix": both[:, 1]})
    assert torch.equal(both[:, 1], tensors["matrix"].to(dtype))
    assert bool((both[:, 0] == 7).all()), "the rows between were written"


def test_progress_is_told_to_the_last_byte(
    tensors: dict[str, torch.Tensor], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", 256)
    told: list[tuple[int, int, str]] = []
    with TensorReader(
        read_header(path).tensors, CPU, progress=lambda *args: told.append(args), what="at it"
    ) as reader:
        reader.read({key: torch.empty_like(tensor) for key, tensor in tensors.items()})
    size = sum(tensor.nbytes for tensor in tensors.values())
    done = [entry[0] for entry in told]
    assert done == sorted(set(done))
    assert told[-1] == (size, size, "at it")
    assert reader.done_bytes == size


def test_a_file_that_ends_while_it_is_read_is_damaged(path: Path) -> None:
    """It would be a crash of the process if the file were mapped into memory."""
    stored = read_header(path).tensors
    os.truncate(path, stored["matrix"].start + 100)
    with (
        TensorReader(stored, CPU) as reader,
        pytest.raises(CheckpointError, match="it ended inside matrix"),
    ):
        reader.read({"matrix": torch.empty(37, 24)})


def test_a_checksum_that_does_not_fit_is_an_error(
    tensors: dict[str, torch.Tensor], path: Path
) -> None:
    content = tensors["matrix"].numpy().tobytes()
    stored = read_header(path).tensors
    for difference in (0, 1):
        checksums = {"matrix": [zlib.crc32(content) ^ difference]}
        with TensorReader(stored, CPU, checksums=checksums) as reader:
            if difference == 0:
                reader.read({"matrix": torch.empty(37, 24)})
                continue
            with pytest.raises(CheckpointError, match="matrix has another checksum"):
                reader.read({"matrix": torch.empty(37, 24)})


def test_a_file_that_vanishes_is_an_error_of_ours(path: Path) -> None:
    stored = {"matrix": replace(read_header(path).tensors["matrix"], path=path.with_name("gone"))}
    with (
        TensorReader(stored, CPU) as reader,
        pytest.raises(CheckpointError, match="gone cannot be read"),
    ):
        reader.read({"matrix": torch.empty(37, 24)})


@pytest.mark.parametrize(
    "content", [b"", b"\x05", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00{"]
)
def test_what_is_no_safetensors_file_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_header(path)
