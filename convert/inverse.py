"""Applies the tables in reverse: turns our parameters into the tensors of an official file."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from musicgen_jax.convert.rules import Rule, Table, Transform, placeholders, template_regex
from musicgen_jax.errors import UserError


def invert_table(table: Table, tree: Mapping, what: str) -> dict[str, np.ndarray]:
    """The tensors from which `apply_table` makes the parameters.

    The tensors are checked: `apply_table` turns them into exactly the same parameters. Each tensor
    has the type of its parameter, except where `apply_table` computes in float32 (weight norm, sums
    of biases). There the tensors have the component's own type if it is exact, as in an official
    file, and float32 otherwise. Such a parameter in half precision comes back as the same numbers
    in float32.

    Args:
      table: the rules, in the spelling of the file.
      tree: the parameters, nested dicts of arrays.
      what: the model's name, for messages.

    Returns:
      Tensors by key.

    Raises:
      UserError: a parameter cannot be made from any tensors; the message names it.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    values = {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}
    # In most official language models this is half precision; computed parameters are float32.
    narrow = min((value.dtype for value in values.values()), key=lambda dtype: dtype.itemsize)
    tensors: dict[str, np.ndarray] = {}
    for path, value in values.items():
        rule, indices = _rule_of(table, path)
        parts = _parts(rule.transform, value, narrow)
        if parts is None:
            raise UserError(
                f"{what}: no tensors of the official format make {path} exactly: it holds values "
                "that the format cannot express"
            )
        tensors |= zip(_keys(rule, indices, len(parts)), parts, strict=True)
    for remade in table.remade:
        if remade.target in values:
            tensors |= _remake(remade.source, remade.make, values[remade.target])
    return tensors


def _rule_of(table: Table, path: str) -> tuple[Rule, dict[str, str]]:
    for rule in table.rules:
        if match := re.fullmatch(template_regex(rule.target), path):
            return rule, match.groupdict()
    raise UserError(f"the official format has no place for {path}")


def _keys(rule: Rule, indices: Mapping[str, str], count: int) -> Iterator[str]:
    """The keys of `count` tensors, in the order in which the rule takes them."""
    each = count // len(rule.templates)  # collected tensors per template
    for template in rule.templates:
        free = set(placeholders(template)) - indices.keys()
        for index in range(each):
            yield template.format(**indices, **dict.fromkeys(free, str(index)))


def _parts(
    transform: Callable[..., np.ndarray], value: np.ndarray, narrow: np.dtype
) -> Sequence[np.ndarray] | None:
    if not isinstance(transform, Transform):
        raise TypeError(f"{transform} has no inverse")
    with np.errstate(all="ignore"):  # the result is checked below
        wide = [np.asarray(part) for part in transform.inverse(value)]
        for parts in ([part.astype(narrow) for part in wide], wide):
            if _same_numbers(transform(*parts), value):
                return parts
    return None


def _same_numbers(made: np.ndarray, value: np.ndarray) -> bool:
    """Whether both are equal bit by bit, in the type of `made`, which can be wider."""
    if made.shape != value.shape or made.dtype.itemsize < value.dtype.itemsize:
        return False
    wide = value.astype(made.dtype)
    x, y = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (made, wide))
    return np.array_equal(x, y)


def _remake(
    template: str, make: Callable[[np.ndarray], np.ndarray], value: np.ndarray
) -> dict[str, np.ndarray]:
    names = placeholders(template)
    if not names:
        return {template: make(value)}
    return {template.format(**{names[0]: k}): make(part) for k, part in enumerate(value)}
