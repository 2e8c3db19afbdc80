"""The language model's table, in the order of the forward pass."""

import dataclasses
import statistics

import numpy as np

from musicgen_jax.config import LMConfig
from musicgen_jax.convert import style
from musicgen_jax.convert.rules import STACK, Remade, Rule, Table, Transform, norm, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

# 3 x [D, D] <-> [3 D, D], with rows in the order q, k, v.
FUSE = Transform(lambda *qkv: np.concatenate(qkv), lambda weight: np.split(weight, 3))
_WINDOW = 16384  # samples in a window of the chroma's Fourier transform


def _hann(like: np.ndarray) -> np.ndarray:
    """The window of audiocraft's chroma, in the type of `like`.

    torch's cosine rounds differently.
    """
    angle = np.arange(_WINDOW, dtype=np.float32) * np.float32(2 * np.pi / _WINDOW)
    return (np.float32(0.5) - np.float32(0.5) * np.cos(angle)).astype(like.dtype)


_TEXT = "condition_provider.conditioners.description.output_proj"
_LAYER, _TO = "transformer.layers.{i}", "transformer/layers/{i}"
AUDIOCRAFT = Table(
    rules=(
        *with_bias("text_conditioner/output_proj", _TEXT),
        Rule("emb/embedding", "emb.{k}.weight", STACK),
        *norm(f"{_TO}/norm1", f"{_LAYER}.norm1"),
        Rule(f"{_TO}/self_attn/in_proj/weight", f"{_LAYER}.self_attn.in_proj_weight"),
        Rule(f"{_TO}/self_attn/out_proj/weight", f"{_LAYER}.self_attn.out_proj.weight"),
        *norm(f"{_TO}/norm_cross", f"{_LAYER}.norm_cross"),
        Rule(f"{_TO}/cross_attention/in_proj/weight", f"{_LAYER}.cross_attention.in_proj_weight"),
        Rule(f"{_TO}/cross_attention/out_proj/weight", f"{_LAYER}.cross_attention.out_proj.weight"),
        *norm(f"{_TO}/norm2", f"{_LAYER}.norm2"),
        Rule(f"{_TO}/linear1/weight", f"{_LAYER}.linear1.weight"),
        Rule(f"{_TO}/linear2/weight", f"{_LAYER}.linear2.weight"),
        *norm("out_norm", "out_norm"),
        Rule("heads/weight", "linears.{k}.weight", STACK),
    ),
    # Models trained with torch's own attention have the name of its module in the key.
    aliases=((r"(self_attn|cross_attention)\.mha\.", r"\1."),),
)
_WAVE = "condition_provider.conditioners.self_wav"
MELODY = dataclasses.replace(
    AUDIOCRAFT,
    rules=(
        *with_bias("chroma_conditioner/output_proj", f"{_WAVE}.output_proj"),
        *AUDIOCRAFT.rules,
    ),
    remade=(
        Remade(
            f"{_WAVE}.chroma.spec.window",
            "a Hann window, rounded to half precision; computed here",
            "chroma_conditioner/output_proj/bias",
            _hann,
        ),
    ),
)
STYLE = dataclasses.replace(
    AUDIOCRAFT, rules=(*style.RULES, *AUDIOCRAFT.rules), remade=style.REMADE
)


def _qkv(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.{part}_proj.weight" for part in "qkv")


_LAYER = "decoder.model.decoder.layers.{i}"
TRANSFORMERS = Table(
    rules=(
        *with_bias("chroma_conditioner/output_proj", "audio_enc_to_dec_proj"),
        *with_bias("text_conditioner/output_proj", "enc_to_dec_proj"),
        Rule("emb/embedding", "decoder.model.decoder.embed_tokens.{k}.weight", STACK),
        *norm(f"{_TO}/norm1", f"{_LAYER}.self_attn_layer_norm"),
        Rule(f"{_TO}/self_attn/in_proj/weight", _qkv(f"{_LAYER}.self_attn"), FUSE),
        Rule(f"{_TO}/self_attn/out_proj/weight", f"{_LAYER}.self_attn.out_proj.weight"),
        *norm(f"{_TO}/norm_cross", f"{_LAYER}.encoder_attn_layer_norm"),
        Rule(f"{_TO}/cross_attention/in_proj/weight", _qkv(f"{_LAYER}.encoder_attn"), FUSE),
        Rule(f"{_TO}/cross_attention/out_proj/weight", f"{_LAYER}.encoder_attn.out_proj.weight"),
        *norm(f"{_TO}/norm2", f"{_LAYER}.final_layer_norm"),
        Rule(f"{_TO}/linear1/weight", f"{_LAYER}.fc1.weight"),
        Rule(f"{_TO}/linear2/weight", f"{_LAYER}.fc2.weight"),
        *norm("out_norm", "decoder.model.decoder.layer_norm"),
        Rule("heads/weight", "decoder.lm_heads.{k}.weight", STACK),
    ),
    ignored={
        r"decoder\.model\.decoder\.embed_positions\.weights": "a table of sines, computed here",
    },
)


def audiocraft_table(config: LMConfig) -> Table:
    """The rules for a language model of these sizes."""
    if config.chroma_bins:
        return MELODY
    return STYLE if config.style else AUDIOCRAFT


def table(part: Part) -> Table:
    """The rules for a language model.

    audiocraft uses the same names for both kinds of audio condition.
    """
    if part.family == "transformers":
        return TRANSFORMERS
    if _hears_melody(part):
        return MELODY
    return STYLE if needs_mert(part) else AUDIOCRAFT


def needs_mert(part: Part) -> bool:
    """Whether this is a style model, whose conditioner reads MERT's features."""
    return part.family == "audiocraft" and style.KEY in part.tensors


def derive_config(part: Part) -> LMConfig:
    """Takes sizes from the tensors, and heads, delays and the kind of model from the settings.

    Raises:
      UserError: this kind of model is not supported, or tensors that give its size are missing.
    """
    rules, tensors = table(part), part.tensors
    part.check("lm")

    def template(path: str) -> str:
        return next(rule.templates[0] for rule in rules.rules if rule.target == path)

    n_q = rules.count(tensors, template("emb/embedding"))
    _, text_dim = _matrix(part, "text_conditioner/output_proj/weight")
    rows, dim = _matrix(part, "emb/embedding")
    ffn_dim, _ = _matrix(part, "transformer/layers/0/linear1/weight")
    cross = rules.count(tensors, template(f"{_TO}/cross_attention/out_proj/weight")) > 0
    melody = is_melody_of_transformers(part) or _hears_melody(part)
    chroma_bins = _matrix(part, "chroma_conditioner/output_proj/weight")[1] if melody else 0
    if melody and (cross or chroma_bins != 12):
        raise UserError(
            f"{part.origin} takes a melody of {chroma_bins} pitch classes"
            f"{' next to cross-attention' if cross else ''}, which is not supported: only 12, "
            "before the tokens, are"
        )
    _check_fuser(part, cross, melody or needs_mert(part))
    _check_special_token(part, rows - 1)
    heads = "transformer_lm.num_heads" if part.family == "audiocraft" else "num_attention_heads"
    try:
        return LMConfig(
            dim=dim,
            # Every official model has heads of size 64.
            num_heads=part.number(heads, max(dim // 64, 1)),
            # The most common count among a layer's parts; the report will name a missing part.
            num_layers=statistics.mode(
                count
                for rule in rules.rules
                if rule.target.startswith(_TO)
                and (count := rules.count(tensors, rule.templates[0]))
            ),
            n_q=n_q,
            card=rows - 1,  # one row for the special token
            delays=_delays(part, n_q),
            ffn_dim=ffn_dim,
            text_dim=text_dim,
            conditioning="cross" if cross else "prepend",
            chroma_bins=chroma_bins,
            style=style.derive_config(part, rules) if needs_mert(part) else None,
        )
    except UserError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"{part.origin}: {error}") from None


def max_duration(part: Part) -> float:
    """Length of the training segments in seconds (default: 30, as in the official models).

    Raises:
      UserError: the number is invalid.
    """
    name = "segment_duration"
    if part.family == "audiocraft":
        name = f"dataset.{name}"
    seconds = part.number(name, 30.0)
    if not 0 < seconds <= 3600:
        raise UserError(f"{part.origin}: {name} must be from 0 to 3600 seconds, got {seconds}")
    return seconds


def _matrix(part: Part, path: str) -> tuple[int, ...]:
    shape = table(part).shape(part.tensors, path)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{part.origin}: what makes {path} must be a matrix, not {shape}")
    return shape


def _check_fuser(part: Part, cross: bool, audio: bool) -> None:
    """Checks the settings that say where the conditions enter; their order does not matter."""
    names = {"description", "self_wav"} if audio else {"description"}
    for how, expected in (("cross", cross), ("prepend", not cross)):
        name = f"fuser.{how}"
        value = part.settings.get(name)
        found = set(value) if isinstance(value, list) else set()
        if value is not None and found != (names if expected else set()):
            raise UserError(
                f"{part.origin} has {name} = {value}, which does not fit its tensors: "
                f"{' and '.join(sorted(names))} enter by {'cross' if cross else 'prepend'}"
            )


def _check_special_token(part: Part, card: int) -> None:
    for name in ("pad_token_id", "bos_token_id") if part.family == "transformers" else ():
        if (value := part.settings.get(name)) not in (None, card):
            raise UserError(
                f"{part.origin} has {name} = {value}, which is not supported: {card} is"
            )


def is_melody_of_transformers(part: Part) -> bool:
    """Whether this is transformers' melody model, even if its projection is missing.

    Transformers has no other model without cross-attention.
    """
    crosses = any(".encoder_attn." in key for key in part.tensors)
    return part.family == "transformers" and not crosses


def _hears_melody(part: Part) -> bool:
    """Whether the audio condition is a melody, not a style: both projections have the same name."""
    names = (f"{_WAVE}.output_proj.", "audio_enc_to_dec_proj.")
    projected = any(key.startswith(names) for key in part.tensors)
    return projected and style.KEY not in part.tensors


def audio_channels(part: Part, delays: tuple[int, ...]) -> int:
    """1 or 2 channels; stereo interleaves the codes of two channels.

    The number comes from the settings. In an audiocraft file without settings, equal delays mean
    stereo.

    Raises:
      UserError: the number is invalid.
    """
    if part.family == "transformers":
        channels = part.number("audio_channels", 1)
        if channels not in (1, 2):
            raise UserError(f"{part.origin}: audio_channels must be 1 or 2, got {channels}")
        return channels
    name = "interleave_stereo_codebooks.use"
    if name in part.settings:
        return 2 if part.flag(name) else 1
    return 2 if len(delays) > 1 and delays[0] == delays[1] else 1


def _delays(part: Part, n_q: int) -> tuple[int, ...]:
    """The delays: audiocraft stores them; transformers derives them from the number of channels."""
    written = part.settings.get("codebooks_pattern.delay.delays")
    if part.family == "audiocraft" and isinstance(written, list):
        if not all(delay.isdecimal() and len(delay) < 5 for delay in written):
            raise UserError(f"{part.origin}: delays must be whole numbers, got {written}")
        return tuple(int(delay) for delay in written)
    # Eight codebooks are those of the official stereo models, unless the settings say otherwise.
    channels = audio_channels(part, (0, 0) if n_q == 8 else ())
    return tuple(k // channels for k in range(n_q))
