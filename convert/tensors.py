"""Tensors of a checkpoint file that are read one at a time, on demand."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class LazyTensor(NamedTuple):
    """A tensor whose shape and dtype are known; `read()` reads the values from the file.

    It is a NamedTuple, so a hostile pickle cannot modify it once it is made.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


StateDict = dict[str, LazyTensor]
