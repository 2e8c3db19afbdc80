"""Tensors of a checkpoint file, read one at a time when asked for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class LazyTensor(NamedTuple):
    """Shape and dtype are known at once; `read()` fetches the values from the file.

    A NamedTuple, because nothing in a hostile pickle can change one that is made.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


StateDict = dict[str, LazyTensor]
