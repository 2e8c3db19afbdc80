"""The engine that applies the tables: it makes our parameters from the source's tensors.

The tables work in both directions: `inverse` makes the source's tensors from our parameters.

A rule has one target and its sources, written with placeholders: `{i}` stands for an index. An
index that the target lacks collects tensors: all `emb.{k}.weight` become one parameter, stacked in
order.

The engine is strict in both directions. Every source key is used exactly once, or ignored for a
stated reason. Every parameter of the abstract tree is written exactly once with its exact shape.
One report lists all faults.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_dtypes
import numpy as np

from musicgen_jax.convert.tensors import LazyTensor, StateDict
from musicgen_jax.errors import UserError

_SHOWN = 8  # maximum faults of one kind in a report


class IncompleteError(UserError):
    """The source lacks tensors."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function that makes a parameter from tensors, and its inverse.

    Attributes:
      forward: makes the parameter from the tensors of a rule.
      inverse: makes these tensors, in the same order, from the parameter. `forward` must turn them
        into exactly the same parameter; if `forward` loses information, any such tensors will do.
    """

    forward: Callable[..., np.ndarray]
    inverse: Callable[[np.ndarray], Sequence[np.ndarray]]

    def __call__(self, *tensors: np.ndarray) -> np.ndarray:
        """Makes the parameter."""
        return self.forward(*tensors)


SAME = Transform(lambda x: x, lambda x: (x,))
STACK = Transform(lambda *tensors: np.stack(tensors), tuple)  # K x [...] <-> [K, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """`target` = `transform(*sources)`; each collected tensor is one more argument."""

    target: str
    sources: str | tuple[str, ...]
    transform: Callable[..., np.ndarray] = SAME

    @property
    def templates(self) -> tuple[str, ...]:
        """The sources, always as a tuple."""
        return (self.sources,) if isinstance(self.sources, str) else self.sources


def norm(target: str, source: str) -> tuple[Rule, Rule]:
    """The rules of a norm, whose factors torch calls a weight."""
    return Rule(f"{target}/scale", f"{source}.weight"), Rule(f"{target}/bias", f"{source}.bias")


def with_bias(
    target: str, source: str, transform: Callable[..., np.ndarray] = SAME
) -> tuple[Rule, Rule]:
    """The rules of a linear layer or convolution; `transform` is that of the weight."""
    return (
        Rule(f"{target}/weight", f"{source}.weight", transform),
        Rule(f"{target}/bias", f"{source}.bias"),
    )


@dataclasses.dataclass(frozen=True)
class Remade:
    """A tensor of the source that makes no parameter, but that the source's code requires.

    Attributes:
      source: key of the tensor; if the key has an index, each slice of the parameter has one.
      why: the reason why it is not converted.
      target: the parameter that determines its size and type.
      make: makes the tensor from that parameter or from the slice.
    """

    source: str
    why: str
    target: str
    make: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules to convert one component from one family of files.

    Attributes:
      rules: the rules, in the order of the forward pass.
      aliases: (regex, replacement) pairs that translate other spellings of a key to the rules'
        spelling.
      ignored: regex -> the reason why matching keys are neither converted nor made again.
      remade: other keys that are not converted, and how to make them again.
    """

    rules: Sequence[Rule]
    aliases: Sequence[tuple[str, str]] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remade: Sequence[Remade] = ()

    def ignores(self, name: str) -> bool:
        """Whether a key, in the spelling of the rules, is ignored for a known reason."""
        patterns = (*self.ignored, *(template_regex(item.source) for item in self.remade))
        return any(re.fullmatch(pattern, name) for pattern in patterns)

    def rename(self, key: str) -> str:
        """The key in the spelling of the rules."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    def shape(self, source: StateDict, path: str) -> tuple[int, ...]:
        """The shape of the first tensor that makes the parameter at `path`."""
        wanted = _source_of(self, path)
        for key, tensor in source.items():
            if self.rename(key) == wanted:
                return tensor.shape
        raise IncompleteError(f"the source lacks {wanted}, which gives the size of the model")

    def count(self, source: StateDict, template: str) -> int:
        """The number of keys that match a template, such as `emb.{k}.weight`."""
        pattern = re.compile(template_regex(template))
        return len({name for key in source if pattern.fullmatch(name := self.rename(key))})


@dataclasses.dataclass
class _Target:
    """The sources found for one parameter: (index of the template, collected index) -> key."""

    rule: Rule
    indices: dict[str, str]
    found: dict[tuple[int, int], str] = dataclasses.field(default_factory=dict)

    def missing(self, stacked: int) -> list[str]:
        """Names of missing source keys, for a parameter of `stacked` tensors."""
        faults = []
        for number, template in enumerate(self.rule.templates):
            collects = set(placeholders(template)) - set(self.indices)
            for index in range(stacked if collects else 1):
                if (number, index) not in self.found:
                    free = dict.fromkeys(collects, str(index)) | self.indices
                    faults.append(template.format(**free))
        return faults


def apply_table(table: Table, source: StateDict, abstract: Mapping, what: str) -> dict:
    """Converts one component.

    Args:
      table: the component's rules.
      source: the tensors.
      abstract: nested dicts of `jax.ShapeDtypeStruct`, from `nnx.eval_shape`. Only its paths and
        shapes are used; the dtypes come from the source.
      what: the source's name, for messages.

    Returns:
      The same nested dicts, with numpy arrays.

    Raises:
      UserError: tensors are missing, left over, or have the wrong shape or type (the first line
        counts them and the other lines name them), or a number is not finite.
    """
    targets, unexpected = _match(table, source)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}

    for path in targets.keys() - wanted.keys():
        unexpected += [f"{key} (no {path} here)" for key in targets[path].found.values()]

    faults = {"missing": [], "unexpected": unexpected, "mis-shaped": [], "not a float": []}
    infinite: list[str] = []
    values: dict[str, np.ndarray] = {}
    for path, leaf in wanted.items():
        if path not in targets:
            faults["missing"].append(_source_of(table, path))
        elif lacking := targets[path].missing(leaf.shape[0]):
            faults["missing"] += lacking
        else:
            target = targets[path]
            keys = [target.found[slot] for slot in sorted(target.found)]
            strangers = [key for key in keys if not _is_float(source[key].dtype)]
            faults["not a float"] += [f"{key} is of type {source[key].dtype}" for key in strangers]
            if strangers:
                continue
            value = _transform(target.rule, [source[key] for key in keys])
            if value is None or value.shape != leaf.shape:
                got = ", ".join(f"{key} {source[key].shape}" for key in keys[:3])
                faults["mis-shaped"].append(f"{got} for {path} {leaf.shape}")
                continue
            if not np.isfinite(value).all():
                infinite.append(_not_finite(keys, source))
            values[path] = value
    _report(what, faults)
    if infinite:
        more = f", and {len(infinite) - 1} more parameters like it" if infinite[1:] else ""
        raise UserError(f"{what}: {infinite[0]}{more}: the file is damaged or training diverged")
    return jax.tree.unflatten(structure, [values[path] for path in wanted])


def _is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def _transform(rule: Rule, tensors: list[LazyTensor]) -> np.ndarray | None:
    """The parameter; None if the shapes of the tensors do not fit each other.

    Tensors of different types are converted to a type that can represent all of them: float16 and
    bfloat16, as in a merged adapter, become float32.
    """
    arrays = [tensor.read() for tensor in tensors]
    if len({array.dtype for array in arrays}) > 1:
        wide = np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32
        arrays = [array.astype(wide) for array in arrays]
    try:
        with np.errstate(all="ignore"):  # the result is checked
            return rule.transform(*arrays)
    except ValueError:
        return None


def _not_finite(keys: Sequence[str], source: StateDict) -> str:
    for key in keys:
        values = source[key].read()
        if count := values.size - np.count_nonzero(np.isfinite(values)):
            return f"{key} holds NaN or infinity in {count} of {values.size} places"
    return f"what {keys[0]} makes is not finite: a magnitude without a direction, or an overflow"


def _match(table: Table, source: StateDict) -> tuple[dict[str, _Target], list[str]]:
    compiled = [
        (rule, number, re.compile(template_regex(template)))
        for rule in table.rules
        for number, template in enumerate(rule.templates)
    ]
    targets: dict[str, _Target] = {}
    unexpected = []
    for key in source:
        name = table.rename(key)
        matches = [(r, n, m) for r, n, p in compiled if (m := p.fullmatch(name))]
        if not matches:
            if not table.ignores(name):
                unexpected.append(key)
            continue
        if len(matches) > 1:
            raise AssertionError(f"the table is ambiguous: {key} matches {len(matches)} rules")
        rule, number, match = matches[0]
        indices = match.groupdict()
        path = rule.target.format(**indices)
        bound = {k: v for k, v in indices.items() if k in placeholders(rule.target)}
        collected = [int(v) for k, v in indices.items() if k not in bound]
        target = targets.setdefault(path, _Target(rule, bound))
        slot = (number, collected[0] if collected else 0)
        if slot in target.found:
            unexpected.append(f"{key} (a second {target.found[slot]})")
        target.found[slot] = key
    return targets, unexpected


def placeholders(template: str) -> list[str]:
    """The names of the indices in a template."""
    return re.findall(r"\{(\w+)\}", template)


def template_regex(template: str) -> str:
    """A regex with one group for each index of a template."""
    # No leading zeros: "00" and "0" would be two spellings of one layer.
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]{0,4})", re.escape(template))


def _source_of(table: Table, path: str) -> str:
    """The source key from which a parameter should have come."""
    for rule in table.rules:
        if match := re.fullmatch(template_regex(rule.target), path):
            template = rule.templates[0]
            return template.format(**dict.fromkeys(placeholders(template), "0") | match.groupdict())
    raise AssertionError(f"the table has no rule for {path}")


def _report(what: str, faults: Mapping[str, list[str]]) -> None:
    counts = [f"{len(names)} {kind}" for kind, names in faults.items() if names]
    if not counts:
        return
    lines = [f"{what} does not fit the architecture: {', '.join(counts)}"]
    for kind, names in faults.items():
        lines += [f"  {kind}: {name}" for name in sorted(names)[:_SHOWN]]
        if len(names) > _SHOWN:
            lines.append(f"  {kind}: and {len(names) - _SHOWN} more")
    error = IncompleteError if faults["missing"] else UserError
    raise error("\n".join(lines))
