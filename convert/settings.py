"""Reads the settings in a checkpoint."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from musicgen_jax.convert import known_settings
from musicgen_jax.convert.pickled import Inert
from musicgen_jax.convert.tensors import StateDict
from musicgen_jax.errors import UserError

_OMEGACONF = "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"
_BUILTINS = ("dict", "list", "tuple", "set", "str", "unicode", "int", "long", "float", "bool")
# Names in the file of a training run, besides tensors: its settings are pickled as objects.
TRAINING_NAMES = frozenset(
    {
        *_OMEGACONF,
        "omegaconf.base.Metadata",
        "omegaconf.base.ContainerMetadata",
        *(
            f"omegaconf.nodes.{kind}Node"
            for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")
        ),
        "typing.Any",
        "collections.defaultdict",
        *(f"{module}.{kind}" for kind in _BUILTINS for module in ("builtins", "__builtin__")),
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",  # since Python 3.13
        "torch.Size",
        "torch.device",
        "torch.torch_version.TorchVersion",
    }
)
_MAX_DEPTH, _MAX_SETTINGS = 30, 100_000  # audiocraft's own: 8 and a thousand
_MAX_YAML = 1 << 18  # characters; audiocraft's own: 20,000


class Part(NamedTuple):
    """One component as found in a source.

    Attributes:
      family: "audiocraft" or "transformers".
      tensors: the tensors of that component, without its prefix in the keys.
      settings: transformers' config object, or audiocraft's `xp.cfg`, by dotted name.
      origin: the file or folder, for messages.
    """

    family: str
    tensors: StateDict
    settings: Mapping[str, Any]
    origin: str

    def require(self, name: str, *allowed: Any) -> None:
        """Refuses a setting unless it is absent or has one of the allowed values."""
        known_settings.check(
            {name: self.settings.get(name, allowed[0])},
            {name: known_settings.Only(*allowed)},
            self.origin,
        )

    def check(self, component: str) -> None:
        """Refuses all settings that would change the numbers of the component."""
        table = known_settings.TABLES.get((self.family, component), {})
        known_settings.check(self.settings, table, self.origin)

    def unknown(self, component: str) -> list[str]:
        """Names of settings in no table; audiocraft's files contain many training settings."""
        table = known_settings.TABLES.get((self.family, component))
        if self.family == "audiocraft" or table is None:
            return []
        return known_settings.unknown(self.settings, table)

    def flag(self, name: str) -> bool:
        """A boolean setting (default: false)."""
        value = str(self.settings.get(name, False)).lower()
        if value not in ("true", "false", "null", "none"):
            raise UserError(f"{self.origin}: {name} must be true or false, got {value[:50]}")
        return value == "true"

    def number(self, name: str, default: int | float) -> Any:
        """A numeric setting, converted to the type of its default."""
        value = self.settings.get(name)
        try:
            return default if value in (None, "null") else type(default)(value)  # type: ignore
        except (TypeError, ValueError, OverflowError):  # the last one: a whole number of infinity
            raise UserError(f"{self.origin}: {name} must be a number, got {value!r:.80}") from None


def read_xp_cfg(text: str) -> dict[str, str | list[str]]:
    """Reads OmegaConf's YAML as {"transformer_lm.num_heads": "16"}; also reads lists of scalars.

    Every scalar stays plain text: there are no tags, types or objects.

    Raises:
      ValueError: the text is not YAML, or is larger or deeper than any real settings.
    """
    if len(text) > _MAX_YAML:
        raise ValueError("its settings are too large")
    try:
        return read_config(yaml.load(text, Loader=yaml.BaseLoader) or {})
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deep"
        raise ValueError(f"its settings are not YAML: {reason}") from None


def read_config(value: Any) -> dict[str, str | list[str]]:
    """Reads settings that were pickled, not written as YAML; returns the form of `read_xp_cfg`.

    Args:
      value: the inert record of an omegaconf DictConfig, or plain dicts and lists.

    Raises:
      ValueError: the value is larger or deeper than any real settings.
    """
    values: dict[str, str | list[str]] = {}
    count = 0

    def walk(value: Any, name: str, depth: int) -> None:
        nonlocal count
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_SETTINGS or len(name) > 1000:
            raise ValueError("its settings are too large or nested too deep")
        value = _content(value)
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key), depth + 1)
        elif isinstance(value, list) and value:
            items = [_content(item) for item in value]
            count += len(items)
            values[name] = [_yaml(item) for item in items if not isinstance(item, (dict, list))]
        else:
            values[name] = _yaml(value)

    walk(value, "", 0)
    return {name: _resolve(value, values) for name, value in values.items()}


def _content(value: Any) -> Any:
    """The content of an omegaconf object; returns any other value unchanged."""
    if not isinstance(value, Inert):
        return value
    state = value.state if isinstance(value.state, dict) else {}
    return state.get("_content" if value.name in _OMEGACONF else "_val")


def _yaml(value: Any) -> str:
    """A scalar as OmegaConf writes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            text = str(value)
            return text.replace("e", ".0e", 1) if "e" in text and "." not in text else text
        case str() | int():
            return str(value)
        case dict() | list():
            return "{}" if isinstance(value, dict) else "[]"
    return ""  # a path or a name: no setting used here has such a value


def _resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """Follows OmegaConf's references: ${sample_rate}."""
    for _ in range(5):
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None or reference[1] not in values:
            break
        value = values[reference[1]]
    return value
