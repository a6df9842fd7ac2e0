"""How far float32 features may be from the goldens, which were made on another CPU."""

from __future__ import annotations

import numpy as np

# Of the largest number. CPUs add up in another order; the goldens themselves are up to 1.1e-6 away
# from the same network in float64, and so are we.
ROUNDING = 2e-6


def relative_difference(ours: np.ndarray, golden: np.ndarray) -> float:
    """Return the largest difference as a share of the largest number of the golden."""
    return float(np.abs(ours - golden).max() / np.abs(golden).max())
