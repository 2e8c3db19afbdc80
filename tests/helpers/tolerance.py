"""The one place that says how close is equal.

Float32 at highest matmul precision, both sides. Errors are relative to the largest reference
value, so that a sum that cancels to nearly zero does not count as wrong.
"""

import numpy as np

RELATIVE = 1e-4


def max_relative_error(actual, expected) -> float:
    """max |actual - expected| / max |expected|; infinite if a shape differs or a value is NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return float("inf")
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    scale = np.abs(expected.astype(np.float64)).max(initial=0.0) or 1.0
    return float(error / scale) if np.isfinite(error) else float("inf")


def assert_close(actual, expected, relative: float = RELATIVE, what: str = "") -> None:
    """Fails unless shapes are equal and the largest relative error is within `relative`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what} shape {actual.shape} != {expected.shape}"
    error = max_relative_error(actual, expected)
    assert error <= relative, f"{what} relative error {error:.2e} > {relative:.0e}"
