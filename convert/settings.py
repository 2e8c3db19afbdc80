"""What a checkpoint says about itself besides its tensors."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from musicgen_jax.convert.tensors import StateDict
from musicgen_jax.errors import UserError


class Part(NamedTuple):
    """One component as found in a source.

    Attributes:
      family: "audiocraft" or "transformers".
      tensors: with the keys of that component alone.
      settings: transformers' config object, or audiocraft's `xp.cfg` by dotted name.
      origin: the file or folder, for messages.
    """

    family: str
    tensors: StateDict
    settings: Mapping[str, Any]
    origin: str

    def require(self, name: str, *allowed: Any) -> None:
        """Refuses a setting that the model does not implement; an absent one is fine."""
        value = self.settings.get(name, allowed[0])
        if value not in allowed:
            raise UserError(
                f"{self.origin} has {name} = {str(value)[:50]}, which is not supported: only "
                f"{' or '.join(str(a) for a in allowed)} is"
            )

    def number(self, name: str, default: int | float) -> Any:
        """A numeric setting, of the type of its default."""
        value = self.settings.get(name)
        try:
            return default if value in (None, "null") else type(default)(value)  # type: ignore
        except (TypeError, ValueError):
            raise UserError(f"{self.origin}: {name} must be a number, got {value!r}") from None


def read_xp_cfg(text: str) -> dict[str, str | list[str]]:
    """The YAML that OmegaConf writes, as {"transformer_lm.num_heads": "16"}; lists of scalars too.

    Only block style with one key a line, which is all that OmegaConf writes; what is beyond that
    (multi-line strings, lists of maps) is skipped or garbled, and no setting used here is.
    """
    values: dict[str, str | list[str]] = {}
    stack: list[tuple[int, str]] = []  # (indentation, key) of the maps around a line
    for line in text.splitlines():
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if item := re.fullmatch(r"- (.*)", content):
            while stack and stack[-1][0] > indent:
                stack.pop()
            entry = values.setdefault(".".join(key for _, key in stack), [])
            if isinstance(entry, list):
                entry.append(_scalar(item[1]))
        elif pair := re.fullmatch(r"([\w/-]+):(?: (.*))?", content):
            while stack and stack[-1][0] >= indent:
                stack.pop()
            stack.append((indent, pair[1]))
            if pair[2]:
                values[".".join(key for _, key in stack)] = _scalar(pair[2])
    return {name: _resolve(value, values) for name, value in values.items()}


def _scalar(text: str) -> str:
    return text.strip().strip("'\"")


def _resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """Follows OmegaConf's references: ${sample_rate}."""
    for _ in range(5):
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None or reference[1] not in values:
            break
        value = values[reference[1]]
    return value
