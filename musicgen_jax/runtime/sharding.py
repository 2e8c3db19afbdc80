"""Places weights, caches and batches on many devices.

A mesh has two axes: "data" splits the rows of a batch, and "model" splits each layer. The modules
do not know about the mesh. The table below gives the placement of weights. Inputs follow the
placement of their rows, and caches that of their rows and heads. The compiler places everything in
between and inserts the communication. One device is a mesh of 1 x 1, or no mesh; the code is the
same.

On several hosts, call `jax.distributed.initialize` first, then run the same program everywhere.
Every process gets the whole result, and one of them should write it.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from musicgen_jax.errors import UserError

Tree = TypeVar("Tree")

DATA, MODEL = "data", "model"

ROWS = P(DATA)  # arrays whose first axis is B: tokens, conditions, codes, audio
CACHE = P(DATA, MODEL)  # keys and values [B, N, S, H]

_LAYER = r"lm/transformer/layers/\d+"
_ATTENTION = _LAYER + r"/(self_attn|cross_attention)"
_T5 = r"t5/layers/\d+"

# For each weight: its placement, and a field of its component's config. The size of the model axis
# must divide this field; otherwise every device holds the whole weight. The first matching pattern
# applies.
#
# As in Megatron-LM, the first product of a pair is split by its outputs and the second by its
# inputs, so that each pair exchanges one sum of activations. Attention heads stay whole, hence
# `num_heads`: halves of a head would have to exchange their scores. The vocabulary heads are split
# into whole books: each book is sampled independently, and only tokens are exchanged.
#
# Norms, the codec and the conditioners of melody and style are small, so they stay whole. The
# embeddings of codes also stay whole; they are half a percent of the large model. Splitting them by
# D would leave the residual stream split, so that every norm exchanges its sums (the compiled
# program has four exchanges instead of one). Splitting them by V is impossible, since
# V + 1 = 2049 is odd.
PARAMETERS: tuple[tuple[str, P, str | None], ...] = (
    (_ATTENTION + "/in_proj/weight", P(None, MODEL), "num_heads"),  # [3, D, D], see `arrange`
    (_ATTENTION + "/out_proj/weight", P(None, MODEL), "num_heads"),  # [D, D]
    (_LAYER + "/linear1/weight", P(MODEL), "ffn_dim"),  # [F, D]
    (_LAYER + "/linear2/weight", P(None, MODEL), "ffn_dim"),  # [D, F]
    ("lm/heads/weight", P(MODEL), "n_q"),  # [K, V, D]
    (_T5 + "/[qkv]/weight", P(MODEL), "num_heads"),  # [N * H, E]
    (_T5 + "/o/weight", P(None, MODEL), "num_heads"),  # [E, N * H]
    (_T5 + "/wi/weight", P(MODEL), "d_ff"),  # [F, E]
    (_T5 + "/wo/weight", P(None, MODEL), "d_ff"),  # [E, F]
    ("t5/shared/embedding", P(MODEL), "vocab_size"),  # [V, E]
    (".*", P(), None),
)
_FUSED = re.compile(_ATTENTION + "/in_proj/weight(/.*)?")  # queries, keys and values fused
_INT8 = re.compile("(.*/weight)/(int8|scale)")  # an int8 weight [..., O, I], its scales [..., O, 1]


def make_mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """Makes a mesh of the first `data * model` devices of all processes.

    Args:
      data: number of parts that a batch is split into.
      model: number of parts that each layer's weights are split into; best over the devices with
        the fastest connection.

    Returns:
      A mesh with the axes "data" and "model".

    Raises:
      UserError: a number is not positive, or there are not enough devices.
    """
    for name, size in ((DATA, data), (MODEL, model)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"{name} must be a positive number of devices, got {size!r}")
    devices = jax.devices()
    if data * model > len(devices):
        raise UserError(
            f"{data} x {model} devices requested, but jax finds {len(devices)} "
            f"({devices[0].platform})"
        )
    # With axes of type Auto the modules need not specify the placement of their products.
    axes = (AxisType.Auto, AxisType.Auto)
    chosen = devices[: data * model]
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=axes, devices=chosen)


def mesh_of(module: nnx.Module) -> Mesh | None:
    """The mesh that holds a module's weights; None if it does not come from `make_mesh`.

    The placement of the weights decides the placement of the inputs, so callers need not pass it.
    """
    for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (DATA, MODEL):
            assert isinstance(sharding.mesh, Mesh)
            return sharding.mesh
        return None
    return None


# --- Weights --------------------------------------------------------------------------------------


def spec_of(name: str, config: Any, mesh: Mesh) -> P:
    """The placement of a weight.

    Args:
      name: component and path, such as "lm/heads/weight".
      config: config of the component.
      mesh: a mesh from `make_mesh`.
    """
    int8 = _INT8.fullmatch(name)
    weight = int8[1] if int8 else name
    for pattern, spec, field in PARAMETERS:
        if re.fullmatch(pattern, weight):
            divides = field is None or getattr(config, field) % mesh.shape[MODEL] == 0
            inputs = spec == P(None, MODEL) and not _FUSED.fullmatch(name)
            return P() if not divides or (inputs and name.endswith("/scale")) else spec
    raise AssertionError("the last pattern matches everything")


def as_stored(component: str, config: Any, abstract: dict, mesh: Mesh | None) -> dict:
    """Adds the placement for reading to the abstract weights of a component.

    Args:
      component: "t5", "mert", "lm" or "encodec".
      config: config of the component.
      abstract: nested dicts of `jax.ShapeDtypeStruct`, with the stored shapes.
      mesh: the mesh; with None, `abstract` is returned unchanged.

    Returns:
      The same nested dicts, with a sharding in every leaf. So no device ever has to hold a whole
      weight that the table splits.
    """
    if mesh is None:
        return abstract

    def place_leaf(path, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name, spec = _name_and_spec(component, config, path, mesh)
        if _FUSED.fullmatch(name) and spec != P():
            spec = _fused_stored(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place_leaf, abstract)


def arrange(component: str, config: Any, params: dict, mesh: Mesh | None) -> dict:
    """Moves the weights of a component to the devices that use them.

    Queries, keys and values are stored as one weight [3 D, D]. If this weight were split, one
    device would hold the queries of some heads and another device their keys. So a split weight is
    reshaped to [3, D, D]: then each device holds queries, keys and values of its own heads.
    `linear` accepts both shapes.

    Args:
      component: "t5", "mert", "lm" or "encodec".
      config: config of the component.
      params: nested dicts of arrays, with the stored shapes.
      mesh: the mesh; with None, `params` is returned unchanged.

    Returns:
      Nested dicts of arrays on the mesh.
    """
    if mesh is None:
        return params

    def arrange_leaf(path, leaf: jax.Array | np.ndarray) -> jax.Array:
        name, spec = _name_and_spec(component, config, path, mesh)
        if not _FUSED.fullmatch(name) or spec == P():
            return place(leaf, NamedSharding(mesh, spec))
        stored = place(leaf, NamedSharding(mesh, _fused_stored(leaf)))
        return _split_fused(stored, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(arrange_leaf, params)


def _fused_stored(leaf: Any) -> P:
    """Splits by columns for reading; devices then exchange parts, and none holds the whole."""
    return P() if leaf.shape[-1] == 1 else P(None, MODEL)


def _name_and_spec(component: str, config: Any, path, mesh: Mesh) -> tuple[str, P]:
    name = f"{component}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
    return name, spec_of(name, config, mesh)


@partial(jax.jit, static_argnames="sharding")
def _split_fused(weight: jax.Array, *, sharding: NamedSharding) -> jax.Array:
    split = weight.reshape(3, -1, weight.shape[1])
    return jax.lax.with_sharding_constraint(split, sharding)


# --- Batches and caches ---------------------------------------------------------------------------


def by_rows(mesh: Mesh | None, stage: Callable[..., Any], *rows: Any) -> Any:
    """Runs a stage with the rows of its batch spread over the devices.

    If B is not divisible by the size of the data axis, the batch is padded with copies of its last
    row, and their results are removed afterwards.

    Args:
      mesh: mesh of the stage's weights; with None, the stage is simply called.
      stage: a function of `rows` whose results also have B as first axis.
      *rows: arrays or trees of arrays [B, ...], on the host or on the mesh.

    Returns:
      The stage's results, B rows, with a whole copy on every device.
    """
    if mesh is None:
        return stage(*rows)
    batch = jax.tree.leaves(rows)[0].shape[0]
    return first_rows(stage(*place_rows(rows, mesh)), mesh=mesh, batch=batch)


def place_rows(tree: Tree, mesh: Mesh | None) -> Tree:
    """Spreads arrays [B, ...] over "data", padded to a multiple of it with their last row."""
    if mesh is None:
        return tree
    size, sharding = mesh.shape[DATA], NamedSharding(mesh, ROWS)

    def place_leaf(x: Any) -> jax.Array:
        if x.shape[0] % size:
            x = x[np.minimum(np.arange(-(-x.shape[0] // size) * size), x.shape[0] - 1)]
        return place(x, sharding)

    return jax.tree.map(place_leaf, tree)


@partial(jax.jit, static_argnames=("mesh", "batch"))
def first_rows(tree: Tree, *, mesh: Mesh, batch: int) -> Tree:
    """The first `batch` rows of arrays [B, ...]; every device of every process gets a copy."""
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[:batch], whole), tree)


def constrain_rows(tree: Tree, mesh: Mesh | None) -> Tree:
    """Within jit: keeps arrays [B, ...] spread over "data"; B must be a multiple of it."""
    return _constrain(tree, mesh, lambda x: ROWS)


def constrain_cache(tree: Tree, mesh: Mesh | None) -> Tree:
    """Within jit: keeps keys and values [B, G, S, D / G] with the weights of their heads."""

    def spec(x: jax.Array) -> P:
        assert mesh is not None
        return ROWS if x.shape[1] % mesh.shape[MODEL] else CACHE

    return _constrain(tree, mesh, spec)


def _constrain(tree: Tree, mesh: Mesh | None, spec: Callable[[jax.Array], P]) -> Tree:
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(x))), tree
    )


def place(x: Any, sharding: Sharding) -> jax.Array:
    """Places an array by a sharding; every process must hold the same array."""
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    # Each process places its own part. With jax.device_put the processes would compare first.
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
