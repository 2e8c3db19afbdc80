"""Where the arrays of a training run lie on a mesh.

The state between steps (parameters, their averages and the optimizer's state) is sharded over
"model" according to `sharding.PARAMETERS`; FSDP also shards it over "data". Arrays keep their
stored shapes, so a checkpoint does not depend on the mesh. Within a step, each block gathers its
weights from "data" just before it runs. With rematerialisation it gathers them again in the
backward pass. So no device ever holds all weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.nn.transformer import Block
from musicgen_jax.runtime import sharding
from musicgen_jax.runtime.sharding import DATA, MODEL

_COMPONENTS = ("t5", "lm")
_FUSED = "in_proj/weight"  # fused queries, keys and values, [3 D, D]; see `sharding.arrange`


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How a run uses its devices (default: one device)."""

    data: int = 1  # parts of the batch; 0: all devices that `model` leaves
    model: int = 1  # parts of each layer
    fsdp: bool = False  # also shard the state between steps over "data"

    def __post_init__(self) -> None:
        if self.data < 0 or self.model < 1:
            raise ValueError(
                f"data must not be negative and model at least 1, got {self.data}, {self.model}"
            )

    def make(self) -> Mesh | None:
        """Makes the mesh; None means one device.

        Raises:
          UserError: there are too few devices, or the mesh would leave out devices of some process.
        """
        data = self.data or max(jax.device_count() // self.model, 1)
        if data * self.model == 1 and jax.process_count() == 1:
            return None
        if jax.process_count() > 1 and data * self.model != jax.device_count():
            raise UserError(
                f"a mesh of {data} x {self.model} leaves out some of the {jax.device_count()} "
                f"devices of {jax.process_count()} processes: use all of them"
            )
        return sharding.make_mesh(data=data, model=self.model)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh (None: one device) and whether to use FSDP on it."""

    mesh: Mesh | None = None
    fsdp: bool = False

    def state_shardings(self, model: MusicGenConfig, abstract: Any) -> Any:
        """The sharding of each leaf of a training state between steps; None for one device.

        Args:
          model: the architecture.
          abstract: a pytree of `jax.ShapeDtypeStruct`. Somewhere in its path, a parameter has the
            dict key "t5" or "lm"; the keys from there on name it.
        """
        if self.mesh is None:
            return None
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._stays(model, _param_name(path), leaf.shape), abstract
        )

    def _stays(self, model: MusicGenConfig, name: str, shape: tuple[int, ...]) -> NamedSharding:
        assert self.mesh is not None
        component = name.partition("/")[0]
        spec = P()
        if component in _COMPONENTS and shape:
            spec = sharding.spec_of(name, getattr(model, component), self.mesh)
            if name.endswith(_FUSED) and spec != P():
                spec = P(None, MODEL)
        if self.fsdp and len(shape) > 1:  # sharding vectors is not worth the gather
            axes = [*spec, *[None] * (len(shape) - len(spec))]
            size = self.mesh.shape[DATA]
            free = [i for i, n in enumerate(shape) if axes[i] is None and n % size == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = DATA
                spec = P(*axes)
        return NamedSharding(self.mesh, spec)

    def gather(self, component: str, config: Any, tree: Any, dtype: DTypeLike, under: str = ""):
        """Gathers weights over "data", as a computation needs them. Call it within jit.

        Args:
          component: "t5" or "lm".
          config: of the component.
          tree: nested dicts of all weights of the component, or of a part of it.
          dtype: of matrices in the computation; they and their gradients are sent in this dtype.
          under: path of the part within the component, such as "transformer/layers/0".
        """
        mesh = self.mesh
        if mesh is None:
            return tree

        def gather_leaf(path, x: jax.Array) -> jax.Array:
            keys = jax.tree_util.keystr(path, simple=True, separator="/")
            keys = keys.removesuffix("/base")  # of a weight that has an adapter
            name = "/".join(part for part in (component, under, keys) if part)
            spec = sharding.spec_of(name, config, mesh)
            x = x.astype(dtype) if x.ndim > 1 else x
            if name.endswith(_FUSED) and mesh.shape[MODEL] > 1 and spec != P():
                x = x.reshape(3, -1, x.shape[1])  # each device: q, k and v of its heads
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        return jax.tree_util.tree_map_with_path(gather_leaf, tree)

    def around(self, config: Any, dtype: DTypeLike, remat: bool) -> Callable | None:
        """The value of `Transformer.wrap_block`; None if blocks need no wrapper."""
        if self.mesh is None and not remat:
            return None

        def around(block: Block) -> Callable:
            graphdef, state = nnx.split(block, nnx.Param)

            def run(params, x, *rest):
                params = self.gather("lm", config, params, dtype, "transformer/layers/0")
                return nnx.merge(graphdef, params)(self.rows(x), *rest)

            run = jax.checkpoint(run) if remat else run
            return lambda *args: run(nnx.to_pure_dict(state), *args)

        return around

    def rows(self, tree: Any) -> Any:
        """Shards arrays [B, ...] over "data". Call it within jit."""
        return sharding.constrain_rows(tree, self.mesh)

    def check_batch(self, rows: int) -> None:
        """Checks that `rows` examples at a time divide evenly over "data", or raises UserError."""
        parts = 1 if self.mesh is None else self.mesh.shape[DATA]
        if rows % parts:
            raise UserError(
                f"{rows} examples at a time cannot be split into {parts} equal parts: change "
                "batch_size, accumulate or the mesh"
            )


def _param_name(path: tuple) -> str:
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    first = next((i for i, key in enumerate(keys) if key in _COMPONENTS), len(keys))
    return "/".join(keys[first:])
