"""What libraries print on standard error and no user can do anything about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_BITSANDBYTES_CPU = "bitsandbytes.backends.cpu.ops"


@contextmanager
def without_library_noise() -> Iterator[None]:
    """Keep three things from the terminal; everything else that is printed inside stays.

    They are the bar that transformers draws while it loads weights (one per process), its warning
    about a property that PEFT asks for, and a warning of bitsandbytes, which PEFT imports, that a
    kernel from the hub is not there: it computes without it. Also a decorator.
    """
    had_bars = transformers_logging.is_progress_bar_enabled()
    logger = logging.getLogger(_BITSANDBYTES_CPU)
    transformers_logging.disable_progress_bar()
    logger.addFilter(_is_no_missing_kernel)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        logger.removeFilter(_is_no_missing_kernel)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _is_no_missing_kernel(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()
