"""Every mistake a user can fix, as an exception whose text says what to do next.

This file knows no cause in detail: the module that notices the mistake writes the message.
"""

from __future__ import annotations


class OpenVLAError(Exception):
    """Base of all errors that this package raises on purpose."""


class CheckpointError(OpenVLAError):
    """A checkpoint folder is missing, incomplete, damaged, or in a refused format."""


class ActionStatsError(OpenVLAError):
    """Action statistics are missing, ambiguous, or do not fit the action."""


class ImageError(OpenVLAError):
    """An image is missing, has the wrong shape or type, or cannot be decoded."""


class InstructionError(OpenVLAError):
    """An instruction is empty or cannot be given to the model."""


class ConfigurationError(OpenVLAError):
    """A parameter, a configuration file or a combination of them is not usable."""


class DependencyError(OpenVLAError):
    """An optional library is needed for what was asked, and is not installed."""


class DeviceError(OpenVLAError):
    """The machine cannot run the requested device, dtype or quantisation."""


class GpuMemoryError(DeviceError, MemoryError):
    """The GPU has less free memory than the checkpoint needs; nothing was loaded."""


class StorageError(OpenVLAError):
    """A disk is full, or a file on it cannot be written."""


class TrainingError(OpenVLAError):
    """Training cannot go on: its numbers are none any more, or a process of it was killed."""


class SelfTestError(OpenVLAError):
    """The loaded policy does not behave like a policy: it must not drive a robot."""


class MotionError(OpenVLAError):
    """An action cannot be turned into motion, because something about it is unknown."""
