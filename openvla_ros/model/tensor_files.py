"""Safetensors files read straight into tensors that exist already.

Several threads read pieces of bounded size, so that neither a disk nor a bus waits for the other,
and no tensor is held twice. Files are read, not mapped: a file that is cut off while it is read is
an error here and not a crash. This file knows bytes and shapes, not what they mean.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

from openvla_ros.errors import CheckpointError
from openvla_ros.model.shards import Shape

#: Called with bytes done, bytes in all, and what is being done.
Progress = Callable[[int, int, str], None]

#: Read at a time by each thread; also what a checksum covers.
CHUNK_BYTES = 16 * 2**20
_READERS = 4
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: torch's number format -> what safetensors calls it.
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        path: File.
        dtype: Number format in the file.
        shape: Its shape.
        start: Position of its first byte in the file.
    """

    path: Path
    dtype: torch.dtype
    shape: Shape
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What a file says about itself: its tensors, free-text metadata, and the bytes that say so."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    raw: bytes


def read_header(path: Path) -> Header:
    """Return the header of a file whose length and offsets have been found to be right.

    Raises:
        CheckpointError: The file is damaged, or holds a number format that torch has not.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # checks that offsets, shapes and the file's length agree
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(length)
        table = json.loads(raw)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete ({error}). Copy or download it again."
        ) from error
    metadata = table.pop("__metadata__", None) or {}
    unknown = sorted({entry["dtype"] for entry in table.values()} - set(_DTYPES))
    if unknown:
        raise CheckpointError(
            f"{path} holds numbers in the format {', '.join(unknown)}; known are "
            f"{', '.join(_DTYPES)}. Save the checkpoint in bfloat16 or float32."
        )
    tensors = {
        key: StoredTensor(
            path,
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
        )
        for key, entry in table.items()
    }
    return Header(tensors, metadata, raw)


@dataclass(frozen=True)
class _Piece:
    """A run of bytes in a file, and the elements they become: (n,), or (rows, columns)."""

    key: str
    stored: StoredTensor
    start: int
    place: torch.Tensor
    checksum: int | None

    @property
    def nbytes(self) -> int:
        return self.place.numel() * self.stored.dtype.itemsize

    @property
    def is_direct(self) -> bool:
        """Whether the file's bytes are those of the place."""
        place = self.place
        return place.is_contiguous() and place.dtype == self.stored.dtype


class TensorReader:
    """Reads tensors of safetensors files into places. A context manager; one thread uses it.

    Args:
        tensors: Key -> where it is stored.
        device: Of all places.
        checksums: Key -> CRC-32 of each `CHUNK_BYTES` of a tensor, when they shall be checked.
        progress: Told after every piece.
        what: Is being done, for `progress`.
    """

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        device: torch.device,
        *,
        checksums: Mapping[str, Sequence[int]] | None = None,
        progress: Progress | None = None,
        what: str = "reading the checkpoint",
    ) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._tensors = tensors
        self._device = device
        self._checksums = checksums
        self._progress = progress
        self._what = what
        self._files: dict[Path, int] = {}
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(
            min(_READERS, os.cpu_count() or 1), initializer=self._enter_thread
        )
        self.total_bytes = sum(stored.nbytes for stored in tensors.values())
        self.done_bytes = 0
        #: Time spent in `read`.
        self.seconds = 0.0

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, places: Mapping[str, torch.Tensor]) -> None:
        """Fill the places.

        Args:
            places: Key -> tensor of the stored shape, contiguous or with rows that are. Numbers
                become those of its format.

        Raises:
            CheckpointError: A file cannot be read, ends too early, or a checksum does not fit.
        """
        self._wait_for_device()  # a place may be memory that kernels under way still read
        start = time.perf_counter()
        pieces = [piece for key, place in places.items() for piece in self._split(key, place)]
        for piece, _ in zip(pieces, self._pool.map(self._fill, pieces), strict=True):
            self.done_bytes += piece.nbytes
            if self._progress:
                self._progress(self.done_bytes, self.total_bytes, self._what)
        self.seconds += time.perf_counter() - start

    def tensor(self, key: str) -> torch.Tensor:
        """Return one tensor in memory of its own, in the number format of the file.

        Raises:
            CheckpointError: As `read`.
        """
        stored = self._tensors[key]
        place = torch.empty(stored.shape, dtype=stored.dtype, device=self._device)
        self.read({key: place})
        return place

    def _enter_thread(self) -> None:
        if self._device.type == "cuda":  # or page-locking memory would occupy the first GPU too
            torch.cuda.set_device(self._device)

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _split(self, key: str, place: torch.Tensor) -> Iterator[_Piece]:
        stored = self._tensors[key]
        assert tuple(place.shape) == stored.shape, f"{key}: {place.shape}, stored {stored.shape}"
        if stored.path not in self._files:
            try:
                self._files[stored.path] = os.open(stored.path, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(f"{stored.path} cannot be read: {error}") from error
        rows = place.detach()
        rows = rows.reshape(-1) if rows.is_contiguous() else rows
        row_bytes = stored.dtype.itemsize * (rows.shape[1] if rows.dim() == 2 else 1)
        step = max(1, CHUNK_BYTES // row_bytes)
        for number, first in enumerate(range(0, len(rows), step)):
            start = stored.start + first * row_bytes
            checksum = self._checksums[key][number] if self._checksums else None
            yield _Piece(key, stored, start, rows[first : first + step], checksum)

    def _fill(self, piece: _Piece) -> None:
        """Read one piece. Runs in the pool's threads."""
        on_gpu = self._device.type == "cuda"
        if piece.is_direct and not on_gpu:
            self._read_bytes(piece, piece.place.view(torch.uint8))
            return
        staging = self._staging(piece.nbytes)
        self._read_bytes(piece, staging)
        values = staging.view(piece.stored.dtype).view(piece.place.shape)
        if not on_gpu:
            piece.place.copy_(values)
            return
        stream = self._stream()
        with torch.cuda.stream(stream):
            if not piece.is_direct:  # converted and spread on the GPU; torch would do it here
                values = values.to(self._device, non_blocking=True)
            piece.place.copy_(values, non_blocking=True)
        stream.synchronize()  # the buffer is free again; the other threads read meanwhile

    def _read_bytes(self, piece: _Piece, into: torch.Tensor) -> None:
        """Fill (n,) uint8 in the memory of the host from the file."""
        view = into.numpy().data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._files[piece.stored.path], [view[done:]], piece.start + done)
            except OSError as error:
                raise CheckpointError(f"{piece.stored.path} cannot be read: {error}") from error
            if count == 0:
                raise CheckpointError(
                    f"{piece.stored.path} is damaged or incomplete: it ended inside {piece.key}. "
                    "Copy or download it again."
                )
            done += count
        if piece.checksum is not None and zlib.crc32(view) != piece.checksum:
            raise CheckpointError(
                f"{piece.stored.path} is damaged: {piece.key} has another checksum than when it "
                "was written."
            )

    def _staging(self, nbytes: int) -> torch.Tensor:
        """Return this thread's buffer, (n,) uint8; page-locked where a GPU copies from it."""
        buffer = getattr(self._own, "buffer", None)
        if buffer is None or len(buffer) < nbytes:
            size = max(nbytes, min(CHUNK_BYTES, self._largest_bytes()))
            pinned = self._device.type == "cuda"
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            self._own.buffer = buffer
        return buffer[:nbytes]

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)
        return self._own.stream

    def _largest_bytes(self) -> int:
        return max(stored.nbytes for stored in self._tensors.values())
