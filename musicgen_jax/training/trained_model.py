"""Writes the result of a training run as a folder that `from_pretrained` loads."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_jax.config import EncodecConfig, MusicGenConfig
from musicgen_jax.storage import checkpoint


def write(
    path: str | os.PathLike,
    config: MusicGenConfig | EncodecConfig,
    params: Mapping[str, Any],
    *,
    license: str,
    source: dict,
    base: Path | None = None,
) -> None:
    """Writes a model or a codec. All processes call it.

    Args:
      path: the output folder; an existing model there is replaced.
      config: the architecture.
      params: the trained components, as {"lm": nested dicts of arrays}.
      license: the licence text of the weights.
      source: origin of the weights, in plain JSON types.
      base: folder of the model whose tokenizer and other components are copied; None for a codec.
    """
    whole = isinstance(config, MusicGenConfig)
    parts = checkpoint.component_configs(config) if whole else {"encodec": config}
    with checkpoint.writing_model(path, overwrite=True) as writer:
        for name in parts:
            if name in params:
                writer.write_component(name, params[name])
            else:
                assert base is not None
                writer.copy_component(base, name)
        tokenizer = base / checkpoint.TOKENIZER if whole and base else None
        writer.finish(
            config if whole else parts, tokenizer=tokenizer, license=license, source=source
        )
