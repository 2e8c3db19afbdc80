"""CLAP's tables, in the order of the forward pass: LAION's files and transformers' folders.

The two families hold the same numbers. transformers has another name for almost everything, and
keeps queries, keys and values apart in the audio tower too.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from musicgen_jax.config import ClapConfig, HtsatConfig, RobertaConfig
from musicgen_jax.convert.files import read_json
from musicgen_jax.convert.rules import Rule, Table, Transform, norm, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.convert.tensors import StateDict
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.clap_audio import hann, mel_filters
from musicgen_jax.metrics.clap_htsat import PATCH, WINDOW

LAION = "laion"
# With the front end's settings: of newer versions of transformers, and of older ones.
SETTINGS_FILES = ("processor_config.json", "preprocessor_config.json")
# What transformers takes for a setting that its file lacks.
_FRONT_END_DEFAULTS = {"truncation": "fusion", "frequency_min": 0}
# NumPy scalars in the optimizer's state: the scheduler of LAION's trainer computes with them.
NAMES = frozenset(
    {
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
    }
)
_WINDOW_KEY = "audio_branch.spectrogram_extractor.stft.conv_real.weight"
_MEL_KEY = "audio_branch.logmel_extractor.melW"
_APART = ("query", "key", "value")

patches = Transform(  # [D, 1, rows, columns] <-> [D, pixels]
    lambda weight: weight.reshape(len(weight), -1),
    lambda weight: (weight.reshape(len(weight), 1, PATCH, PATCH),),
)
joined = Transform(  # queries, keys and values
    lambda *parts: np.concatenate(parts), lambda x: tuple(np.split(x, 3))
)
only = Transform(  # the one type of token, [1, D] <-> [D]
    lambda x: x.reshape(x.shape[1:]), lambda x: (x[None],)
)


def _qkv(ours: str, *theirs: str) -> Iterable[Rule]:
    """A linear layer for queries, keys and values, or three that become one."""
    if len(theirs) == 1:
        return with_bias(ours, *theirs)
    return (
        Rule(f"{ours}/{kind}", tuple(f"{name}.{kind}" for name in theirs), joined)
        for kind in ("weight", "bias")
    )


class Names(NamedTuple):
    """One family's names. The last ten are those within a block of the audio tower."""

    audio: str
    band_norm: str
    text: str
    projections: tuple[str, str]
    norm1: str
    qkv: tuple[str, ...]
    positions: str
    out: str
    norm2: str
    linear1: str
    linear2: str


_NAMES = {
    LAION: Names(
        audio="audio_branch",
        band_norm="bn0",
        text="text_branch",
        projections=("0", "2"),
        norm1="norm1",
        qkv=("attn.qkv",),
        positions="attn.relative_position_bias_table",
        out="attn.proj",
        norm2="norm2",
        linear1="mlp.fc1",
        linear2="mlp.fc2",
    ),
    "transformers": Names(
        audio="audio_model.audio_encoder",
        band_norm="batch_norm",
        text="text_model",
        projections=("linear1", "linear2"),
        norm1="layernorm_before",
        qkv=tuple(f"attention.self.{name}" for name in _APART),
        positions="attention.self.relative_position_bias_table",
        out="attention.output.dense",
        norm2="layernorm_after",
        linear1="intermediate.dense",
        linear2="output.dense",
    ),
}


def _rules(names: Names) -> tuple[Rule, ...]:
    tower, band_norm = names.audio, f"{names.audio}.{names.band_norm}"
    stage, block = f"{tower}.layers.{{i}}", f"{tower}.layers.{{i}}.blocks.{{j}}"
    ours = "audio/stages/{i}/blocks/{j}"
    layer, attention = (f"{names.text}.encoder.layer.{{i}}{x}" for x in ("", ".attention"))
    return (
        *norm("audio/band_norm", band_norm),
        Rule("audio/band_norm/mean", f"{band_norm}.running_mean"),
        Rule("audio/band_norm/variance", f"{band_norm}.running_var"),
        *with_bias("audio/patches", f"{tower}.patch_embed.proj", patches),
        *norm("audio/patch_norm", f"{tower}.patch_embed.norm"),
        *norm(f"{ours}/norm1", f"{block}.{names.norm1}"),
        *_qkv(f"{ours}/qkv", *(f"{block}.{name}" for name in names.qkv)),
        Rule(f"{ours}/positions", f"{block}.{names.positions}"),
        *with_bias(f"{ours}/out", f"{block}.{names.out}"),
        *norm(f"{ours}/norm2", f"{block}.{names.norm2}"),
        *with_bias(f"{ours}/linear1", f"{block}.{names.linear1}"),
        *with_bias(f"{ours}/linear2", f"{block}.{names.linear2}"),
        *norm("audio/stages/{i}/merge_norm", f"{stage}.downsample.norm"),
        Rule("audio/stages/{i}/merge/weight", f"{stage}.downsample.reduction.weight"),
        *norm("audio/norm", f"{tower}.norm"),
        Rule("text/tokens", f"{names.text}.embeddings.word_embeddings.weight"),
        Rule("text/positions", f"{names.text}.embeddings.position_embeddings.weight"),
        Rule("text/token_type", f"{names.text}.embeddings.token_type_embeddings.weight", only),
        *norm("text/norm", f"{names.text}.embeddings.LayerNorm"),
        *_qkv("text/blocks/{i}/qkv", *(f"{attention}.self.{x}" for x in _APART)),
        *with_bias("text/blocks/{i}/out", f"{attention}.output.dense"),
        *norm("text/blocks/{i}/attention_norm", f"{attention}.output.LayerNorm"),
        *with_bias("text/blocks/{i}/linear1", f"{layer}.intermediate.dense"),
        *with_bias("text/blocks/{i}/linear2", f"{layer}.output.dense"),
        *norm("text/blocks/{i}/ffn_norm", f"{layer}.output.LayerNorm"),
        *with_bias("text/pooler", f"{names.text}.pooler.dense"),
        *(
            rule
            for tower in ("audio_projection", "text_projection")
            for i, theirs in enumerate(names.projections, start=1)
            for rule in with_bias(f"{tower}/linear{i}", f"{tower}.{theirs}")
        ),
    )


_COUNTED = "follows from the sizes"
_UNUSED = "no embedding depends on it"
TABLES = {
    LAION: Table(
        _rules(_NAMES[LAION]),
        ignored={
            r"audio_branch\.(spectrogram_extractor|logmel_extractor)\..*": "the spectrum is ours: "
            "see `check_front_end`",
            r"audio_branch\.bn0\.num_batches_tracked": _UNUSED,
            r"audio_branch\.layers\.\d+\.blocks\.\d+\.attn_mask": _COUNTED,
            r"audio_branch\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index": _COUNTED,
            r"audio_branch\.(tscam_conv|head)\.(weight|bias)": "the classifier of its first task",
            r"text_branch\.embeddings\.(position_ids|token_type_ids)": _COUNTED,
            r"(audio|text)_transform\.sequential\.\d+\.(weight|bias)": _UNUSED,
            r"logit_scale_[at]": _UNUSED,
        },
    ),
    "transformers": Table(
        _rules(_NAMES["transformers"]),
        ignored={
            r"audio_model\.audio_encoder\.batch_norm\.num_batches_tracked": _UNUSED,
            r"audio_model\..*\.attention\.self\.relative_position_index": _COUNTED,
            r"text_model\.embeddings\.(position_ids|token_type_ids)": _COUNTED,
            r"logit_scale_[at]": _UNUSED,
        },
    ),
}


def family(tensors: StateDict) -> str | None:
    """The family of files that the tensors come from; None if they are not CLAP's."""
    if any(key.startswith("audio_branch.") for key in tensors):
        return LAION
    if any(key.startswith("audio_model.audio_encoder.") for key in tensors):
        return "transformers"
    return None


def without_patch(state: dict) -> dict:
    """LAION's state dict without what fadtk puts there so that laion-clap can delete it."""
    return {
        key: value
        for key, value in state.items()
        if not (type(key) is str and key.endswith(".embeddings.position_ids") and value == 0)
    }


def part_of(tensors: StateDict, path: Path) -> Part | None:
    """The tensors with their settings, and None if they are not CLAP's."""
    if (found := family(tensors)) is None:
        return None
    return Part(found, tensors, _settings(path.parent) if found != LAION else {}, str(path))


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of both towers and of the front end, as `text_config/hidden_size`."""
    config = _json(folder / "config.json")
    newer, older = (_json(folder / name) for name in SETTINGS_FILES)
    front = newer.get("feature_extractor") or older
    sections = {
        "text_config": config.pop("text_config", None),
        "audio_config": config.pop("audio_config", None),
        "front end": _FRONT_END_DEFAULTS | front if isinstance(front, dict) and front else None,
    }
    for name, section in sections.items():
        if isinstance(section, dict):
            config |= {f"{name}/{key}": value for key, value in section.items()}
    return config


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def derive_config(part: Part) -> ClapConfig:
    """Sizes from the tensors, the rest from the settings.

    Raises:
      UserError: the network is not a CLAP of HTSAT and RoBERTa without fusion, or its spectrum is
        not ours.
    """
    table, names, origin = TABLES[part.family], _NAMES[part.family], part.origin
    if any(".patch_embed.fusion_model." in key for key in part.tensors):
        raise UserError(
            f"{origin} is a CLAP with fusion, which is not supported: take "
            "music_audioset_epoch_15_esc_90.14.pt or 630k-audioset-best.pt of lukewys/laion_clap"
        )
    part.check("clap")
    check_front_end(part)

    def shape(path: str) -> tuple[int, ...]:
        return table.shape(part.tensors, path)

    def count(template: str) -> int:
        return table.count(part.tensors, template)

    try:
        dim, *pixels = shape("audio/patches/weight")
        if pixels != [1, PATCH, PATCH]:
            raise ValueError(f"patches of {pixels}")
        stages = range(4)
        tables = [shape(f"audio/stages/{stage}/blocks/0/positions") for stage in stages]
        if any(rows != (2 * WINDOW - 1) ** 2 for rows, _ in tables):
            raise ValueError(f"windows other than {WINDOW} x {WINDOW}")
        vocab_size, width = shape("text/tokens")
        ffn_dim, _ = shape("text/blocks/0/linear1/weight")
        space, _ = shape("audio_projection/linear1/weight")
        block = f"{names.audio}.layers.%d.blocks.{{j}}.{names.norm1}.weight"
        depths = [count(block % stage) for stage in stages]
        # Heads of size 64, as in roberta-base.
        heads = part.number("text_config/num_attention_heads", max(width // 64, 1))
        # transformers' default differs from RoBERTa's.
        epsilon = 1e-5 if part.family == LAION else 1e-12
        return ClapConfig(
            HtsatConfig(dim, tuple(depths), tuple(heads for _, heads in tables)),
            RobertaConfig(
                vocab_size=vocab_size,
                positions=shape("text/positions")[0],
                dim=width,
                num_heads=heads,
                num_layers=count(f"{names.text}.encoder.layer.{{i}}.output.dense.bias"),
                ffn_dim=ffn_dim,
                layer_norm_epsilon=part.number("text_config/layer_norm_eps", epsilon),
            ),
            space,
        )
    except UserError:
        raise
    except (LookupError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{origin} is not a CLAP of HTSAT-base or HTSAT-tiny and RoBERTa: {error}"
        ) from None


def check_front_end(part: Part) -> None:
    """Compares our window and mel filters with those in LAION's file.

    Raises:
      UserError: they differ: the model uses a different spectrum.
    """
    for key, ours in ((_MEL_KEY, mel_filters()), (_WINDOW_KEY, hann())):
        if key not in part.tensors:
            continue
        stored = part.tensors[key].read()
        stored = stored[0, 0] if key == _WINDOW_KEY and stored.ndim == 3 else stored
        if stored.shape != ours.shape or not np.allclose(stored, ours, rtol=0, atol=1e-6):
            raise UserError(
                f"{part.origin}: {key} is not that of 48 kHz, 1024 samples and 64 bands from 50 "
                f"to 14000 Hz: this CLAP uses a different spectrum"
            )
