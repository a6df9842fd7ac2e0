"""Ways to choose the 16 levels of an int4 group, for comparison with the one the engine uses.

Each takes a matrix (N, K) and returns it as rounded. Groups are 128 columns of one row, as in
`openvla_ros.engine.low_bit`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from openvla_ros.engine.low_bit import GROUP, quantize

Rounding = Callable[[torch.Tensor], torch.Tensor]

_TINY = torch.finfo(torch.float32).tiny
_SHARES = [0.40 + 0.02 * i for i in range(31)]
_ROUNDS = 20


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """Round to nearest; the largest magnitude of a group is level 7."""
    groups = _groups(weight)
    return _back(_apply(groups, _range(groups) / 7), weight)


def engine(weight: torch.Tensor) -> torch.Tensor:
    """As `low_bit` does."""
    return quantize(weight, "int4").dequantize()


def many_shares(weight: torch.Tensor) -> torch.Tensor:
    """Search over 31 shares of the range, 0.40 to 1.00."""
    groups = _groups(weight)
    return _back(_apply(groups, _search(groups, [s / 7 for s in _SHARES])), weight)


def both_signs(weight: torch.Tensor) -> torch.Tensor:
    """Search over shares and the sign of the scale: level -8 serves either end. Same format."""
    groups = _groups(weight)
    factors = [s / 7.5 for s in _SHARES]
    return _back(_apply(groups, _search(groups, factors + [-f for f in factors])), weight)


def refitted(weight: torch.Tensor) -> torch.Tensor:
    """As `both_signs`, then levels and least-squares scale in turns. Same format."""
    groups = _groups(weight)
    factors = [s / 7.5 for s in _SHARES]
    scales = _search(groups, factors + [-f for f in factors])
    for _ in range(_ROUNDS):
        levels = _levels(groups, scales)
        squares = levels.square().sum(dim=2, keepdim=True)
        fitted = (levels * groups).sum(dim=2, keepdim=True) / squares.clamp_min(1)
        scales = torch.where(squares > 0, fitted, scales)
    return _back(_apply(groups, scales), weight)


def zero_point(weight: torch.Tensor) -> torch.Tensor:
    """Scale and zero point from the smallest and the largest value of a group."""
    groups = _groups(weight)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    scales = ((high - low) / 15).clamp_min(_TINY)
    return _back((((groups - low) / scales).round().clamp(0, 15)) * scales + low, weight)


def zero_point_refitted(weight: torch.Tensor) -> torch.Tensor:
    """Range shrunk by a searched share, then levels and least-squares scale and zero in turns."""
    groups = _groups(weight)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    best, best_error = groups, torch.full_like(low, float("inf"))
    for share in _SHARES[5::5]:
        scales, offset = (share * half / 7.5).clamp_min(_TINY), middle - share * half
        for _ in range(_ROUNDS):
            levels = ((groups - offset) / scales).round().clamp(0, 15)
            scales, offset = _fit_line(levels, groups, scales, offset)
        rounded = ((groups - offset) / scales).round().clamp(0, 15) * scales + offset
        error = (rounded - groups).square().sum(dim=2, keepdim=True)
        best = torch.where(error < best_error, rounded, best)
        best_error = torch.minimum(error, best_error)
    return _back(best, weight)


def none(weight: torch.Tensor) -> torch.Tensor:
    """Round nothing: the reference of the comparison."""
    return weight


#: Name for the table -> rounding, and whether the engine's format and kernels can hold it. The
#: first is what the others are compared with.
ROUNDINGS: dict[str, tuple[Rounding, bool]] = {
    "bf16": (none, True),
    "round to nearest": (nearest, True),
    "**the engine's search**": (engine, True),
    "31 shares, 0.40 to 1.00": (many_shares, True),
    "shares and sign of the scale": (both_signs, True),
    "the same, then least squares": (refitted, True),
    "zero point from the range": (zero_point, False),
    "zero point, searched and least squares": (zero_point_refitted, False),
}


def relative_error(weight: torch.Tensor, rounding: Rounding) -> float:
    """Return |rounded - weight| / |weight| over the matrix."""
    return float((rounding(weight).float() - weight.float()).norm() / weight.float().norm())


def _groups(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().unflatten(1, (-1, GROUP))  # (N, groups, 128)


def _back(groups: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return groups.flatten(1).to(weight.dtype)


def _range(groups: torch.Tensor) -> torch.Tensor:
    return groups.abs().amax(dim=2, keepdim=True).clamp_min(_TINY)


def _levels(groups: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (groups / scales).round().clamp(-8, 7)


def _apply(groups: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return _levels(groups, scales) * scales


def _search(groups: torch.Tensor, factors: list[float]) -> torch.Tensor:
    """Return the scale of each group, among factors of its range, that loses least."""
    widest = _range(groups)
    best, best_error = widest / 7, torch.full_like(widest, float("inf"))
    for factor in factors:
        scales = factor * widest
        error = (_apply(groups, scales) - groups).square().sum(dim=2, keepdim=True)
        best = torch.where(error < best_error, scales, best)
        best_error = torch.minimum(error, best_error)
    return best


def _fit_line(
    levels: torch.Tensor, groups: torch.Tensor, scales: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and offset of least squares for given levels; as they were where all are one."""
    mean_level, mean = levels.mean(dim=2, keepdim=True), groups.mean(dim=2, keepdim=True)
    spread = (levels - mean_level).square().sum(dim=2, keepdim=True)
    slope = ((levels - mean_level) * (groups - mean)).sum(dim=2, keepdim=True)
    fitted = slope / spread.clamp_min(_TINY)
    usable = (spread > 0) & (fitted > 0)
    return (
        torch.where(usable, fitted, scales),
        torch.where(usable, mean - fitted * mean_level, offset),
    )
