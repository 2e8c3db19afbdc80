"""The one exception for faults that the user can mend, and checks that many rooms share."""

import math
import numbers
from typing import Any


class UserError(ValueError):
    """A fault that the caller can mend: the message names the fault and the way out.

    The command line prints it as one line and exits with code 2.
    """


def is_int(value: Any) -> bool:
    """Whether `value` is an integer, of Python or NumPy, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite integer or float, of Python or NumPy, and not a bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
