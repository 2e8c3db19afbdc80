"""The rate of a device's memory, measured by programs that do nothing but move bytes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def memory_streams(size: int = 1 << 29, times: int = 16) -> dict[str, Callable[[], object]]:
    """The memory's peak rate: runs that move `size * times` bytes and do nothing else.

    Reading multiplies a float32 matrix by a vector. Copying adds 1 to each element of an array and
    writes it to another existing array: half of the bytes are read and half written. Both use the
    same compiler and threads as the model, so the model could reach these rates.

    Args:
      size: bytes; well above the size of the caches.
      times: number of passes in a run.
    """
    matrix = jnp.ones((size // 4 // 1024, 1024), jnp.float32)
    vector = jnp.ones(1024)
    multiply = jax.jit(lambda m, x: m @ x)
    add = jax.jit(lambda source, target: source + 1, donate_argnums=1, keep_unused=True)
    half = matrix[: len(matrix) // 2]
    targets = [jnp.zeros_like(half)]

    def reading() -> object:
        return [multiply(matrix, vector) for _ in range(times)]

    def copying() -> object:
        for _ in range(times):
            targets.append(add(half, targets.pop()))
        return targets

    return {"reading": reading, "copying": copying}
