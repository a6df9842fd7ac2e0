"""What tells the content of a file or folder from another's, in milliseconds.

A file is known by its size, both ends, and samples between: recordings and weights of many GB are
told apart, and a copy with another date is the same. Fine-tuning may leave the first and the last
tensor of a file as they were, so that the ends alone do not tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from openvla_ros.errors import ConfigurationError

_ENDS_BYTES = 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 2**14  # evenly between the ends


def fingerprint(path: Path) -> str:
    """Return what tells the content of a file, or of all files in a folder, from another's.

    Raises:
        ConfigurationError: There is nothing there, or it cannot be read.
    """
    if not path.exists():
        raise ConfigurationError(f"There is nothing at {path}. Check the name.")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    try:
        for file in files:
            name = file.relative_to(path).as_posix() if file != path else ""
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            for part in _parts(file):
                digest.update(part)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()


def _parts(file: Path) -> Iterator[bytes]:
    """Yield both ends of a file and samples between; all of a file of up to 3 MiB."""
    size = file.stat().st_size
    between = size - 2 * _ENDS_BYTES
    with file.open("rb") as opened:
        yield opened.read(_ENDS_BYTES)
        if between > _SAMPLES * _SAMPLE_BYTES:
            for index in range(_SAMPLES):
                opened.seek(_ENDS_BYTES + index * (between - _SAMPLE_BYTES) // (_SAMPLES - 1))
                yield opened.read(_SAMPLE_BYTES)
            opened.seek(size - _ENDS_BYTES)
        yield opened.read()
