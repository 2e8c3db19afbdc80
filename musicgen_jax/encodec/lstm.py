"""The codec's LSTM: layers over time with a skip around the whole stack."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.linear import linear

State = tuple[jax.Array, jax.Array]  # hidden and cell

# Frames to a turn of the loop: so many kernels XLA records into a command buffer for a GPU, where
# otherwise the host starts each by itself (`benchmarks/gpu_compile.py`).
_UNROLL = 4


class LSTMLayer(nnx.Module):
    """One LSTM layer [B, T, I] -> [B, T, H], gates in PyTorch's order i, f, g, o.

    `weight_ih` is [4 H, I], `weight_hh` [4 H, H]; `bias` [4 H] is the sum of PyTorch's two.
    """

    def __init__(
        self, in_dim: int, dim: int, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.dim, self.dtype = dim, dtype
        bound = 1.0 / math.sqrt(dim)

        def uniform(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))

        self.weight_ih = uniform(4 * dim, in_dim)
        self.weight_hh = uniform(4 * dim, dim)
        self.bias = uniform(4 * dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs the layer over x [B, T, I] from a zero state."""
        zeros = jnp.zeros((x.shape[0], self.dim), self.dtype)
        step = self._step()

        def advance(state: State, gates: jax.Array) -> tuple[State, jax.Array]:
            state = step(state, gates)
            return state, state[0]

        _, hidden = jax.lax.scan(advance, (zeros, zeros), self._from_input(x), unroll=_unroll(x))
        return hidden.swapaxes(0, 1)

    def resume(self, x: jax.Array, state: State, start: jax.Array) -> tuple[jax.Array, State]:
        """Runs the layer from a given state.

        Args:
          x: [B, T, I].
          state: hidden and cell, each [B, H], before frame `start`.
          start: int32 [], frames before it are skipped; their output means nothing.

        Returns:
          [B, T, H], and the states before each frame and behind the last, each [T + 1, B, H].
        """
        step = self._step()

        def advance(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, State]:
            frame, gates = now
            state = jax.tree.map(
                lambda new, old: jnp.where(frame >= start, new, old), step(state, gates), state
            )
            return state, state

        frames = jnp.arange(x.shape[1])
        _, states = jax.lax.scan(advance, state, (frames, self._from_input(x)), unroll=_unroll(x))
        before = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]), state, states
        )
        return states[0].swapaxes(0, 1), before

    def _from_input(self, x: jax.Array) -> jax.Array:
        """The input's share of all gates at all times, [T, B, 4 H]: outside the recurrence."""
        weight_ih = self.weight_ih[...].astype(self.dtype)
        return (x @ weight_ih.T + self.bias[...].astype(self.dtype)).swapaxes(0, 1)

    def _step(self) -> Callable[[State, jax.Array], State]:
        weight_hh = self.weight_hh[...].astype(self.dtype)

        def step(state: State, gates: jax.Array) -> State:
            hidden, cell = state
            i, f, g, o = jnp.split(gates + linear(hidden, weight_hh), 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(cell), cell

        return step


def _unroll(x: jax.Array) -> int:
    """Frames to a turn over `[B, T, I]`; one where T is a symbol, as in an exported program."""
    return _UNROLL if isinstance(x.shape[1], int) else 1


class LSTM(nnx.Module):
    """Stacked LSTM layers with a skip connection: [B, T, H] -> [B, T, H]."""

    def __init__(
        self, dim: int, num_layers: int, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs
    ):
        self.lstm = nnx.List(
            [
                LSTMLayer(dim, dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
                for _ in range(num_layers)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Adds the stack's output to x [B, T, H]."""
        y = x
        for layer in self.lstm:
            y = layer(y)
        return x + y

    def resume(
        self, x: jax.Array, states: tuple[State, ...], start: jax.Array
    ) -> tuple[jax.Array, tuple[State, ...]]:
        """As a call, from given states of all layers; see `LSTMLayer.resume`."""
        y, befores = x, []
        for layer, state in zip(self.lstm, states, strict=True):
            y, before = layer.resume(y, state, start)
            befores.append(before)
        return x + y, tuple(befores)
