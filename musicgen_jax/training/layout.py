"""Where a training run's arrays lie on a mesh.

What stays between steps (parameters, their averages, what the optimizer keeps) is cut over "model"
as `sharding.PARAMETERS` says and, with FSDP, over "data" as well. Shapes are the stored ones, so a
checkpoint does not depend on the mesh. Within a step each block gathers its own weights from "data"
just before it runs, forwards and (with rematerialisation) again backwards: no device ever holds all
of them.
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
_FUSED = "in_proj/weight"  # queries, keys and values in one, [3 D, D]; see `sharding.arrange`


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How a run uses its devices; the default is one of them."""

    data: int = 1  # parts of the batch; 0: as many as there are devices left
    model: int = 1  # parts of each layer
    fsdp: bool = False  # what stays between steps is cut over "data" as well

    def __post_init__(self) -> None:
        if self.data < 0 or self.model < 1:
            raise ValueError(
                f"data must not be negative and model at least 1, got {self.data}, {self.model}"
            )

    def make(self) -> Mesh | None:
        """The mesh, None for one device.

        Raises:
          UserError: there are not so many devices, or devices of some processes would be left out.
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
    """A mesh, None for one device, and whether it is used as FSDP."""

    mesh: Mesh | None = None
    fsdp: bool = False

    def state_shardings(self, model: MusicGenConfig, abstract: Any) -> Any:
        """Where each leaf of a training state stays between steps; None for one device.

        Args:
          model: the architecture.
          abstract: a pytree of `jax.ShapeDtypeStruct`; under whatever there is on top of them,
            parameters have paths that begin with the dict keys "t5" or "lm".
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
        if self.fsdp and len(shape) > 1:  # vectors are not worth gathering
            axes = [*spec, *[None] * (len(shape) - len(spec))]
            size = self.mesh.shape[DATA]
            free = [i for i, n in enumerate(shape) if axes[i] is None and n % size == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = DATA
                spec = P(*axes)
        return NamedSharding(self.mesh, spec)

    def gather(self, component: str, config: Any, tree: Any, dtype: DTypeLike, under: str = ""):
        """Within jit: weights as a computation takes them, whole over "data".

        Args:
          component: "t5" or "lm".
          config: of the component.
          tree: nested dicts of its weights, or of a part of them.
          dtype: in which matrices are used; they and their gradients travel in it.
          under: path of that part within the component, as "transformer/layers/0".
        """
        mesh = self.mesh
        if mesh is None:
            return tree

        def gather_leaf(path, x: jax.Array) -> jax.Array:
            keys = jax.tree_util.keystr(path, simple=True, separator="/")
            keys = keys.removesuffix("/base")  # of a weight beside which an adapter is trained
            name = "/".join(part for part in (component, under, keys) if part)
            spec = sharding.spec_of(name, config, mesh)
            x = x.astype(dtype) if x.ndim > 1 else x
            if name.endswith(_FUSED) and mesh.shape[MODEL] > 1 and spec != P():
                x = x.reshape(3, -1, x.shape[1])  # each device: all three of its heads
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        return jax.tree_util.tree_map_with_path(gather_leaf, tree)

    def around(self, config: Any, dtype: DTypeLike, remat: bool) -> Callable | None:
        """What `Transformer.wrap_block` is to be; None if a block can just be called."""
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
        """Within jit: arrays [B, ...] lie over "data"."""
        return sharding.constrain_rows(tree, self.mesh)

    def check_batch(self, rows: int) -> None:
        """Raises UserError unless so many rows, at a time, divide over "data"."""
        parts = 1 if self.mesh is None else self.mesh.shape[DATA]
        if rows % parts:
            raise UserError(
                f"{rows} examples at a time cannot be cut into {parts} equal parts: change "
                "batch_size, accumulate or the mesh"
            )


def _param_name(path: tuple) -> str:
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    first = next((i for i, key in enumerate(keys) if key in _COMPONENTS), len(keys))
    return "/".join(keys[first:])
