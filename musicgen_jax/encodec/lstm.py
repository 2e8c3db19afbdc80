"""The codec's LSTM: layers over time with a skip around the whole stack."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


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
        weight_hh = self.weight_hh[...].astype(self.dtype)
        # The input's share of all gates at all times is one product outside the recurrence.
        from_input = x @ self.weight_ih[...].astype(self.dtype).T + self.bias[...].astype(
            self.dtype
        )  # [B, T, 4 H]

        def step(carry, gates):
            hidden, cell = carry
            gates = gates + hidden @ weight_hh.T
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((x.shape[0], self.dim), self.dtype)
        _, hidden = jax.lax.scan(step, (zeros, zeros), from_input.swapaxes(0, 1))
        return hidden.swapaxes(0, 1)


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
