"""LoRA: a fine-tuned language model as thin matrices next to the original model's weights.

A weight W [O, I] becomes W + alpha / rank * B A, with A [rank, I] and B [O, rank]
(https://arxiv.org/abs/2106.09685). Queries, keys and values share one weight here, but they are
adapted separately. They have names of their own: `transformer/layers/0/self_attn/in_proj/q`, `/k`
and `/v`, next to names such as `transformer/layers/0/linear1`. A target pattern selects by name.

An adapter is a file of a few MB, see `lora_file`. For generation, the adapter is added to the
weights. For training, it stays separate (`linear.LoraWeight`), so the gradient of a whole weight
is never computed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.config import LMConfig
from musicgen_jax.errors import UserError
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.weights import LoraWeight, quantize
from musicgen_jax.runtime.sharding import place

EVERYWHERE = "^transformer/layers/"  # all attention and feed-forward matrices
_PARTS = ("q", "k", "v")  # parts of a fused weight

Weights = dict[str, dict[str, Any]]  # name -> {"a": [rank, I], "b": [O, rank]}


MAX_RANK = 10_000  # the largest official matrix has rank 2048


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Selects the matrices to adapt and sets the adapter's rank and strength."""

    rank: int = 8
    alpha: float = 16.0  # the adapter's product is scaled by alpha / rank
    target: str = EVERYWHERE  # a regex, searched for in a matrix's name

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank must be from 1 to {MAX_RANK}, got {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        try:
            re.compile(self.target)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"target is not a regular expression: {error}") from None

    @property
    def scale(self) -> float:
        """The factor that scales the product of the two matrices."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A trained adapter.

    Attributes:
      config: the LoRA settings used in training.
      lm: config of the language model that the adapter fits.
      base: name of the model that the adapter was trained from.
      weights: the adapter's matrices by target name, float32.
    """

    config: LoraConfig
    lm: LMConfig
    base: str
    weights: Weights


@dataclasses.dataclass(frozen=True)
class Target:
    """A matrix that can be adapted: a weight, or a part of a fused weight.

    Attributes:
      name: name of the matrix.
      path: path of the weight in the parameter tree.
      part: index of the matrix among the weight's `parts`.
      parts: number of equal parts in the weight: 3 if it is fused, else 1.
      shape: shape of the matrix, (O, I).
    """

    name: str
    path: tuple[str, ...]
    part: int
    parts: int
    shape: tuple[int, int]


def targets(config: LMConfig, pattern: str = "") -> dict[str, Target]:
    """The matrices of a language model whose names match a pattern, by name.

    Raises:
      UserError: the pattern matches no matrix.
    """
    found = {t.name: t for t in _all_targets(config) if re.search(pattern, t.name)}
    if not found:
        names = list(dict.fromkeys(re.sub(r"\d+", "0", t.name) for t in _all_targets(config)))
        raise UserError(f"target {pattern!r} matches none of {', '.join(names)}")
    return found


def _all_targets(config: LMConfig) -> Iterator[Target]:
    lm = module_shapes(LM, config)
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(lm, nnx.Param)))
    for keys, leaf in leaves:
        path = tuple(str(key.key) for key in keys)
        # The style conditioner is not trained.
        if path[-1] != "weight" or len(leaf.shape) != 2 or path[0] == "style_conditioner":
            continue
        name = "/".join(path[:-1])
        rows, columns = leaf.shape
        if path[-2] == "in_proj":
            for i, letter in enumerate(_PARTS):
                yield Target(f"{name}/{letter}", path, i, 3, (rows // 3, columns))
        else:
            yield Target(name, path, 0, 1, (rows, columns))


def init(config: LMConfig, lora: LoraConfig, key: jax.Array) -> Weights:
    """New adapter weights, float32.

    A is normal with variance 1 / I and B is zero, so a new adapter does not change the model.

    Args:
      config: config of the language model.
      lora: rank and targets.
      key: a typed PRNG key.

    Raises:
      UserError: the target pattern matches no matrix.
    """
    weights: Weights = {}
    for i, (name, target) in enumerate(targets(config, lora.target).items()):
        rows, columns = target.shape
        a = jax.random.normal(jax.random.fold_in(key, i), (lora.rank, columns)) / columns**0.5
        weights[name] = {"a": a, "b": jnp.zeros((rows, lora.rank))}
    return weights


# --- Added to the weights -----------------------------------------------------------------------


def changes(adapter: Adapter, scale: float = 1.0) -> dict[tuple[str, ...], np.ndarray]:
    """The matrices that an adapter adds to the weights, by parameter path: float32 [O, I].

    Args:
      adapter: the adapter.
      scale: strength of the adapter; 1 is the strength used in training.
    """
    strength = np.float32(scale * adapter.config.scale)
    known, result = targets(adapter.lm), {}
    for name, pair in adapter.weights.items():
        target = known[name]
        rows, columns = target.shape
        whole = result.setdefault(target.path, np.zeros((rows * target.parts, columns), np.float32))
        a, b = (np.asarray(pair[side], np.float32) for side in "ab")
        whole[target.part * rows : (target.part + 1) * rows] = strength * (b @ a)
    return result


def total_changes(
    adapters: Mapping[str, Adapter], scales: Mapping[str, float]
) -> dict[tuple[str, ...], np.ndarray]:
    """The sum of the matrices of several adapters, see `changes`.

    Args:
      adapters: the loaded adapters, by name.
      scales: strength of each adapter to use, by name.

    Raises:
      UserError: a name in `scales` has no adapter, or a scale is not a finite number.
    """
    total: dict[tuple[str, ...], np.ndarray] = {}
    for name, scale in scales.items():
        if name not in adapters:
            known = ", ".join(adapters) or "none were loaded"
            raise UserError(f"no adapter {name!r}: there is {known}")
        if not math.isfinite(scale):
            raise UserError(f"the scale of adapter {name!r} must be a number, got {scale}")
        for path, change in changes(adapters[name], scale).items():
            total[path] = total[path] + change if path in total else change
    return total


def merge(params: dict, adapter: Adapter, scale: float = 1.0) -> dict[str, Any]:
    """The language model's parameters with an adapter added.

    The sum is computed in float32 and rounded once, to the weight's own dtype.

    Args:
      params: nested dicts of float arrays. They are not modified; the result shares the arrays
        that the adapter does not change.
      adapter: the adapter.
      scale: strength of the adapter, see `changes`.
    """
    for path, change in changes(adapter, scale).items():
        params = _replaced(params, path, lambda w, change=change: add(w, change))
    return params


def add(weight: Any, change: np.ndarray) -> Any:
    """Adds in float32; the result has the weight's dtype, shape and sharding."""
    change = change.reshape(weight.shape)  # a fused weight on a mesh is [3, D, D]
    if not isinstance(weight, jax.Array):
        return (np.asarray(weight, np.float32) + change).astype(weight.dtype)
    return _add(weight, place(change, weight.sharding))


@jax.jit
def _add(weight: jax.Array, change: jax.Array) -> jax.Array:
    return (weight.astype(jnp.float32) + change).astype(weight.dtype)


def adapted(
    lm: LM, changes: Mapping[tuple[str, ...], np.ndarray], read: Callable[[], dict[str, Any]] | None
) -> LM:
    """A language model with changes added to its weights; shares the other weights with `lm`.

    Args:
      lm: the original model, which is not modified.
      changes: matrices to add, by parameter path, as returned by the function `changes`.
      read: returns the parameters as floats; None if they are not available. An int8 model needs
        them, because a change is often smaller than one int8 step: it must be added before
        rounding.

    Raises:
      UserError: `lm` is an int8 model and `read` is None.
    """
    graphdef, state = nnx.split(lm)
    params, floats = nnx.to_pure_dict(state), None
    for path, change in changes.items():
        old = _leaf(params, path)
        if isinstance(old, dict):
            if read is None:
                raise UserError("int8 weights take no adapter: load the model by from_pretrained")
            floats = read() if floats is None else floats
            total = np.asarray(_leaf(floats, path), np.float32) + change
            whole, scale = (
                place(np.asarray(x).reshape(before.shape), before.sharding)
                for x, before in zip(
                    quantize(jnp.asarray(total)), (old["int8"], old["scale"]), strict=True
                )
            )
            params = _replaced(params, path, lambda _, w=whole, s=scale: {"int8": w, "scale": s})
        else:
            params = _replaced(params, path, lambda w, change=change: add(w, change))
    return nnx.merge(graphdef, params)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[next(key for key in tree if str(key) == name)]
    return tree


def _replaced(tree: Mapping, path: tuple[str, ...], function: Any) -> dict[str, Any]:
    """A copy of nested dicts with one leaf changed; copies only the dicts along `path`."""
    key = next(key for key in tree if str(key) == path[0])  # list indices may be integers
    rest = path[1:]
    value = _replaced(tree[key], rest, function) if rest else function(tree[key])
    return {**tree, key: value}


# --- Next to the weights ------------------------------------------------------------------------


class LoraPart(nnx.Module):
    """The two thin matrices of a target."""

    def __init__(self, target: Target, rank: int):
        rows, columns = target.shape
        self.a = nnx.Param(jnp.zeros((rank, columns)))
        self.b = nnx.Param(jnp.zeros((rows, rank)))


class LoraParam(nnx.Module):
    """Replaces a weight's `nnx.Param` in a layer while an adapter is trained."""

    def __init__(self, base: nnx.Param, parts: Mapping[str, LoraPart], count: int, scale: float):
        self.base = base
        self.parts = nnx.Dict(dict(parts))
        self.count, self.scale = count, scale

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.base.shape

    def __getitem__(self, index) -> LoraWeight:
        pairs = [self.parts.get(str(i)) for i in range(self.count)]
        a = tuple(None if pair is None else pair.a[...] for pair in pairs)
        b = tuple(None if pair is None else pair.b[...] for pair in pairs)
        weight = LoraWeight(self.base[...], a, b, self.scale)
        return weight if index is Ellipsis else weight[index]


def attach(lm: LM, lora: LoraConfig) -> None:
    """Replaces every targeted weight of a module with a `LoraParam`, in place.

    Afterwards the module's parameters have the structure that `join` returns.
    """
    for path, parts in _by_weight(lm.config, lora.target).items():
        layer: Any = lm
        for key in path[:-1]:
            layer = layer[int(key)] if key.isdecimal() else getattr(layer, key)
        pairs = {str(part.part): LoraPart(part, lora.rank) for part in parts}
        layer.weight = LoraParam(layer.weight, pairs, parts[0].parts, lora.scale)


def join(params: dict, weights: Weights, config: LMConfig, lora: LoraConfig) -> dict[str, Any]:
    """Combines the model's and the adapter's parameters in the structure that `attach` makes.

    Args:
      params: parameters of the language model, nested dicts.
      weights: weights of the adapter.
      config: config of the language model.
      lora: the LoRA settings passed to `attach`.
    """
    for path, parts in _by_weight(config, lora.target).items():
        pairs = {str(part.part): weights[part.name] for part in parts}
        params = _replaced(params, path, lambda w, pairs=pairs: {"base": w, "parts": pairs})
    return params


def _by_weight(config: LMConfig, pattern: str) -> dict[tuple[str, ...], list[Target]]:
    found: dict[tuple[str, ...], list[Target]] = {}
    for target in targets(config, pattern).values():
        found.setdefault(target.path, []).append(target)
    return found
