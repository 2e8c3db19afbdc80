"""The codec's LSTM: layers over time, with a skip connection around the whole stack."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.linear import linear

State = tuple[jax.Array, jax.Array]  # hidden and cell

# Frames per loop iteration. With this many kernels XLA records them into a command buffer for a
# GPU; otherwise the host launches each kernel separately (`benchmarks/gpu_compile.py`).
_UNROLL = 4


class LSTMLayer(nnx.Module):
    """One LSTM layer [B, T, I] -> [B, T, H], gates in PyTorch's order i, f, g, o.

    `weight_ih` is [4 H, I] and `weight_hh` is [4 H, H]; `bias` [4 H] is the sum of PyTorch's two
    biases.
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
        weight_hh = self.weight_hh[...].astype(self.dtype)
        return _hidden(self._from_input(x), weight_hh, _unroll(x)).swapaxes(0, 1)

    def resume(self, x: jax.Array, state: State, start: jax.Array) -> tuple[jax.Array, State]:
        """Runs the layer from a given state.

        Args:
          x: [B, T, I].
          state: hidden and cell, each [B, H], before frame `start`.
          start: int32 [], the first frame to process. The output of earlier frames is meaningless.

        Returns:
          [B, T, H], and the states before each frame and after the last, each [T + 1, B, H].
        """
        weight_hh = self.weight_hh[...].astype(self.dtype)

        def advance(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, State]:
            frame, gates = now
            state = jax.tree.map(
                lambda new, old: jnp.where(frame >= start, new, old),
                _step(state, gates, weight_hh),
                state,
            )
            return state, state

        frames = jnp.arange(x.shape[1])
        _, states = jax.lax.scan(advance, state, (frames, self._from_input(x)), unroll=_unroll(x))
        before = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]), state, states
        )
        return states[0].swapaxes(0, 1), before

    def _from_input(self, x: jax.Array) -> jax.Array:
        """The input's contribution to all gates of all frames, [T, B, 4 H]; needs no loop."""
        weight_ih = self.weight_ih[...].astype(self.dtype)
        bias = aligned(self.bias[...].astype(self.dtype), x)
        return (x @ weight_ih.T + bias).swapaxes(0, 1)


def _unroll(x: jax.Array) -> int:
    """Frames per loop iteration over `[B, T, I]`; 1 if T is symbolic (in an exported program)."""
    return _UNROLL if isinstance(x.shape[1], int) else 1


def _cell(gates: jax.Array, cell: jax.Array) -> State:
    """The next hidden and cell states, from all gates [B, 4 H] and the previous cell."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _step(state: State, gates: jax.Array, weight_hh: jax.Array) -> State:
    """Advances by one frame; `gates` [B, 4 H] is the input's contribution to the gates."""
    hidden, cell = state
    return _cell(gates + linear(hidden, weight_hh), cell)


def _states(gates: jax.Array, weight_hh: jax.Array, unroll: int) -> State:
    """The states of all frames from a zero state, each [T, B, H].

    `gates` [T, B, 4 H] is the input's contribution to the gates.
    """
    zeros = jnp.zeros((gates.shape[1], weight_hh.shape[1]), gates.dtype)

    def advance(state: State, gates: jax.Array) -> tuple[State, State]:
        state = _step(state, gates, weight_hh)
        return state, state

    return jax.lax.scan(advance, (zeros, zeros), gates, unroll=unroll)[1]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _hidden(gates: jax.Array, weight_hh: jax.Array, unroll: int) -> jax.Array:
    return _states(gates, weight_hh, unroll)[0]


@_hidden.defjvp
def _hidden_jvp(unroll: int, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Derivative with one product for the recurrent weights over all frames, outside the loop.

    Differentiating the loop itself would accumulate their whole gradient at every frame.
    """
    (gates, weight_hh), (dgates, dweight) = primals, tangents
    hidden, cell = _states(gates, weight_hh, unroll)
    hidden_before, cell_before = (jnp.pad(s[:-1], ((1, 0), (0, 0), (0, 0))) for s in (hidden, cell))
    gates = gates + hidden_before @ weight_hh.T
    dgates = dgates + hidden_before @ dweight.T

    def advance(dstate: State, now: tuple) -> tuple[State, jax.Array]:
        gates, cell, dgates = now
        dhidden, dcell = dstate
        _, dstate = jax.jvp(_cell, (gates, cell), (dgates + linear(dhidden, weight_hh), dcell))
        return dstate, dstate[0]

    zeros = jnp.zeros_like(hidden[0])
    frames = gates, cell_before, dgates
    return hidden, jax.lax.scan(advance, (zeros, zeros), frames, unroll=unroll)[1]


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
        """Like `__call__`, but starts from `states` of all layers; see `LSTMLayer.resume`."""
        y, befores = x, []
        for layer, state in zip(self.lstm, states, strict=True):
            y, before = layer.resume(y, state, start)
            befores.append(before)
        return x + y, tuple(befores)
