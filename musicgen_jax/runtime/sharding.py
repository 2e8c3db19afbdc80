"""Many devices: where weights, caches and batches lie.

A mesh has two axes: "data" spreads the rows of a batch, "model" the parts of each layer. No module
knows of it. The table below says where weights lie; inputs and caches lie with their rows and
heads. The compiler places everything between them and inserts the exchanges.
One device is a mesh of 1 x 1, or none at all, through the same code.

Several hosts: call `jax.distributed.initialize` first, then run the same program everywhere; every
process gets the whole result, and one of them should write it.
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

ROWS = P(DATA)  # whatever begins with B: tokens, conditions, codes, audio
CACHE = P(DATA, MODEL)  # keys and values [B, N, S, H]

_LAYER = r"lm/transformer/layers/\d+"
_ATTENTION = _LAYER + r"/(self_attn|cross_attention)"
_T5 = r"t5/layers/\d+"

# Where a weight lies, and the field of its component's config that the model axis must divide; if
# it does not, every device holds the whole weight. The first pattern that matches counts.
#
# As in Megatron-LM the first product of a pair is cut by its outputs and the second by its inputs,
# so that each pair exchanges one sum of activations. Heads stay whole, hence `num_heads`: half a
# head would have to exchange its scores. The heads of the vocabulary are cut into whole books:
# each book draws for itself, and only tokens are exchanged.
#
# Norms, the codec and the conditioners of melody and style stay whole: they are small. The
# embeddings of codes too, half a percent of the large model: cut by D they would leave the residual
# stream cut, so that every norm exchanges its sums (four exchanges for each one, as compiled); by V
# they cannot be cut, since V + 1 = 2049 is odd.
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
_FUSED = re.compile(_ATTENTION + "/in_proj/weight(/.*)?")  # queries, keys and values in one
_INT8 = re.compile("(.*/weight)/(int8|scale)")  # an int8 weight [..., O, I], its scales [..., O, 1]


def make_mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """The first `data * model` devices, those of all processes counted.

    Args:
      data: parts that a batch is cut into.
      model: parts that each layer's weights are cut into; best among devices that are closest.

    Returns:
      A mesh with the axes "data" and "model".

    Raises:
      UserError: a number is not positive, or there are fewer devices.
    """
    for name, size in ((DATA, data), (MODEL, model)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"{name} must be a positive number of devices, got {size!r}")
    devices = jax.devices()
    if data * model > len(devices):
        raise UserError(
            f"{data} x {model} devices asked for, and jax finds {len(devices)} "
            f"({devices[0].platform})"
        )
    # With axes of type Auto the code of the modules need not say how its products are placed.
    axes = (AxisType.Auto, AxisType.Auto)
    chosen = devices[: data * model]
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=axes, devices=chosen)


def mesh_of(module: nnx.Module) -> Mesh | None:
    """The mesh that a module's weights lie on; None if it is not one of `make_mesh`.

    Where the weights lie decides where inputs go: nothing else has to be told.
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
    """Where a weight lies.

    Args:
      name: component and path, as "lm/heads/weight".
      config: of the component.
      mesh: from `make_mesh`.
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
    """Adds to the abstract weights of a component where each is to be read to.

    Args:
      component: "t5", "mert", "lm" or "encodec".
      config: of the component.
      abstract: nested dicts of `jax.ShapeDtypeStruct`, in the shapes that they are stored in.
      mesh: None leaves all as it is.

    Returns:
      the same nested dicts, every leaf with a sharding: no device need ever hold a weight whole
      that the table cuts.
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
    """Puts the weights of a component where they are used.

    Queries, keys and values are stored as one weight [3 D, D]. Cut as that, one device would hold
    the queries of some heads and another their keys. Where they are cut they become [3, D, D]: then
    each device holds all three of its heads, and `linear` takes the one shape as the other.

    Args:
      component: "t5", "mert", "lm" or "encodec".
      config: of the component.
      params: nested dicts of arrays, in the shapes that they are stored in.
      mesh: None leaves all as it is.

    Returns:
      nested dicts of arrays on the mesh.
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
    """Read by columns: from there devices exchange their parts, and none ever holds all of it."""
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

    A batch that does not divide is filled up with copies of its last row, which are cut off after.

    Args:
      mesh: of the stage's weights; None just calls it.
      stage: a function of `rows` whose results begin with B as well.
      *rows: arrays or trees of arrays [B, ...], on the host or on the mesh.

    Returns:
      what the stage returns, B rows, a whole copy on every device.
    """
    if mesh is None:
        return stage(*rows)
    batch = jax.tree.leaves(rows)[0].shape[0]
    return first_rows(stage(*place_rows(rows, mesh)), mesh=mesh, batch=batch)


def place_rows(tree: Tree, mesh: Mesh | None) -> Tree:
    """Spreads arrays [B, ...] over "data", filled up to a multiple of it with their last row."""
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
    """The first rows of arrays [B, ...], a whole copy on every device of every process."""
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[:batch], whole), tree)


def constrain_rows(tree: Tree, mesh: Mesh | None) -> Tree:
    """Within jit: arrays [B, ...], B already a multiple, stay spread over "data"."""
    return _constrain(tree, mesh, lambda x: ROWS)


def constrain_cache(tree: Tree, mesh: Mesh | None) -> Tree:
    """Within jit: keys and values [B, G, S, D / G] stay with the heads' weights."""

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
    """An array where a sharding says; every process must hold the same one."""
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    # Of several processes each puts its own part: jax.device_put would have them compare first.
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
