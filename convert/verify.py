"""Compares a converted model, stage by stage, with the same weights in transformers' classes.

This is the only file of the converter that needs torch. Transformers' classes are the reference for
audiocraft's files too: their tensors are renamed directly from the source, not taken from the
converter's result. Everything runs in float32, one component at a time.
"""

import importlib.util
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.config import EncodecConfig, LMConfig, MertConfig, T5Config
from musicgen_jax.convert import encodec, style
from musicgen_jax.convert.pipeline import MODULES, derive_configs, find_parts
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.encodec.model import Encodec
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.patterns import to_steps
from musicgen_jax.nn.shapes import filled, module_shapes
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.tokenizer import Tokenizer

TOLERANCE = 1e-3  # relative to the largest reference value; 48 float32 layers stay well below it
_TEXTS = ("80s pop track with bassy drums and synth", "a flute")
_FRAMES = 12


class Stage(NamedTuple):
    """The error of one stage.

    Attributes:
      name: name of the stage.
      error: largest difference over largest reference value; for codes, the share that differs.
    """

    name: str
    error: float


def require_packages() -> None:
    """Raises UserError unless torch and transformers are installed."""
    needed = ("torch", "transformers")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'verifying needs {" and ".join(missing)}: pip install "musicgen-jax[parity]"'
        )


def require_reference(
    source: str | os.PathLike,
    *,
    t5_from: str | None = None,
    encodec_from: str | None = None,
    mert_from: str | None = None,
    revision: str | None = None,
) -> None:
    """Raises UserError if the source has no reference to compare with.

    The arguments are those of `convert`.
    """
    parts = find_parts(
        str(source),
        t5_from=t5_from,
        encodec_from=encodec_from,
        mert_from=mert_from,
        revision=revision,
    ).parts
    if "separator" in parts:
        raise UserError(
            "a separator cannot be verified, as transformers has none: leave out --verify"
        )


def verify(
    source: str | os.PathLike,
    converted: str | os.PathLike,
    *,
    t5_from: str | None = None,
    encodec_from: str | None = None,
    mert_from: str | None = None,
    revision: str | None = None,
    log: Callable[[str], None] = print,
) -> list[Stage]:
    """Compares every stage and logs the largest error of each.

    Args:
      source: the source that was converted, as in `convert`: a whole model or a component.
      converted: the folder that `convert` wrote.
      t5_from: source of T5, as passed to `convert`.
      encodec_from: source of the codec, as passed to `convert`.
      mert_from: source of MERT, as passed to `convert`.
      revision: revision of the Hub repository, as passed to `convert`.
      log: called with one line per stage.

    Returns:
      The stages in order.

    Raises:
      UserError: the error of a stage is more than `TOLERANCE`, or packages are missing.
    """
    require_packages()
    configs = checkpoint.load_info(converted).parts
    _, parts = derive_configs(
        find_parts(
            str(source),
            t5_from=t5_from,
            encodec_from=encodec_from,
            mert_from=mert_from,
            revision=revision,
        ).parts
    )
    log("comparing with transformers' classes, in float32:")
    stages = []
    with jax.default_matmul_precision("highest"):
        for stage in _stages(configs, parts, converted):
            log(f"  {stage.name}: {stage.error:.1e}")
            stages.append(stage)
    if bad := [stage.name for stage in stages if not stage.error <= TOLERANCE]:
        raise UserError(f"{converted} differs from {source} in {' and '.join(bad)}")
    return stages


def _stages(
    configs: Mapping[str, Any], parts: Mapping[str, Part], path: str | os.PathLike
) -> Iterator[Stage]:
    rng = np.random.default_rng(0)
    if "t5" in configs:
        ids, mask = Tokenizer(os.path.join(path, checkpoint.TOKENIZER))(_TEXTS)
        ids = ids % configs["t5"].vocab_size  # a test's tokenizer can have more pieces
        expected = _reference_t5(configs["t5"], parts["t5"], ids, mask)
        hidden = call(load("t5", configs["t5"], path), ids, mask)
        yield Stage("T5, hidden states", _error(hidden[mask], expected[mask]))
        if "lm" in configs:
            # Both sides use transformers' hidden states, so each stage shows only its own error.
            error = _lm_error(configs["lm"], parts["lm"], path, expected, mask, rng)
            yield Stage("LM, logits", error)
    if mert := configs.get("mert"):
        noise = rng.normal(0, 0.1, (1, mert.sample_rate)).astype(np.float32)
        expected = _reference_mert(mert, parts["mert"], noise)
        features = call(load("mert", mert, path), noise)
        yield Stage("MERT, features", _error(features, expected))
    if encodec_config := configs.get("encodec"):
        audio = _sweep(encodec_config)
        expected, sound = _reference_codec(encodec_config, parts["encodec"], audio)
        codec = load("encodec", encodec_config, path)
        codes = call(codec, audio, method=Encodec.encode)
        same_shape = codes.shape == expected.shape
        differ = float(np.mean(codes != expected)) if same_shape else float("inf")
        yield Stage("EnCodec, share of other codes", differ)
        decoded = call(codec, expected, method=Encodec.decode)
        yield Stage("EnCodec, sound of the same codes", _error(decoded, sound))


def _lm_error(
    config: LMConfig,
    part: Part,
    path: str | os.PathLike,
    hidden: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
) -> float:
    codes = rng.integers(0, config.card, (len(mask), config.n_q, _FRAMES), dtype=np.int32)
    steps = np.asarray(to_steps(jnp.asarray(codes), config.delays, config.special_token))
    audio = None
    if bins := config.chroma_bins:
        audio = np.eye(bins, dtype=np.float32)[rng.integers(0, bins, (len(mask), _FRAMES))]
    elif config.style:
        # Random vectors, because transformers has no style model with a conditioner to make them.
        audio = rng.standard_normal((len(mask), _FRAMES, config.dim), np.float32)
    expected = _reference_lm(config, part, steps, hidden, mask, audio)
    given = () if audio is None else (audio,)
    logits = call(load("lm", config, path), steps, hidden, mask, *given, method=_logits)
    return _error(logits, expected)


def _error(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def call(module: Any, *arrays: np.ndarray, method: Callable = operator.call) -> np.ndarray:
    """Runs a module op by op: layers share compiled ops, and the module runs only once."""
    return np.asarray(method(module, *map(jnp.asarray, arrays)))


def load(component: str, config: Any, path: str | os.PathLike) -> Any:
    """Our module with the converted weights of a component, in float32."""
    shapes = module_shapes(MODULES[component], config)
    return filled(shapes, partial(checkpoint.load_params, path, component))


def _logits(
    lm: LM,
    steps: jax.Array,
    hidden: jax.Array,
    mask: jax.Array,
    heard: jax.Array | None = None,
) -> jax.Array:
    """Computes logits from T5's hidden states and a melody [B, T, 12] or style [B, P, D]."""
    audio = None
    if heard is not None:
        vectors = heard if lm.chroma_conditioner is None else lm.chroma_conditioner(heard)
        audio = Embedded(vectors, jnp.ones(vectors.shape[:2], bool))
    text = Embedded(lm.text_conditioner(hidden, mask), mask)
    return lm(steps, Condition(text, audio))


def _sweep(config: EncodecConfig) -> np.ndarray:
    """A rising tone in noise, a little longer than twenty frames: [1, C, W]."""
    samples = 20 * config.hop_length + 1
    time = np.arange(samples) / config.sample_rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    noise = np.random.default_rng(1).normal(0, 0.05, (1, config.channels, samples))
    return (tone + noise).astype(np.float32)


# --- The reference -----------------------------------------------------------------------------


def _fill(model: Any, tensors: Mapping[str, np.ndarray], tied: tuple[str, ...] = ()) -> Any:
    """Loads the state dict in float32; all keys must be present except those in `tied`."""
    import torch

    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in tensors.items()}
    result = model.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if key not in tied]
    if missing or result.unexpected_keys:
        raise UserError(
            f"transformers lacks {missing[:3]} and does not expect {result.unexpected_keys[:3]}"
        )
    return model.eval()


def _reference_t5(config: T5Config, part: Part, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    sizes: dict[str, Any] = dict(part.settings) or {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
    }
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes))
    tensors = {
        key: tensor.read()
        for key, tensor in part.tensors.items()
        if not key.startswith(("decoder.", "lm_head."))
    }
    if "shared.weight" not in tensors:
        tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    _fill(model, tensors, tied=("encoder.embed_tokens.weight",))
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
        ).last_hidden_state.numpy()


def _reference_lm(
    config: LMConfig,
    part: Part,
    steps: np.ndarray,
    hidden: np.ndarray,
    mask: np.ndarray,
    heard: np.ndarray | None,
) -> np.ndarray:
    import torch
    import transformers

    melody = heard is not None
    decoder_config, decoder = (
        (transformers.MusicgenMelodyDecoderConfig, transformers.MusicgenMelodyForCausalLM)
        if melody
        else (transformers.MusicgenDecoderConfig, transformers.MusicgenForCausalLM)
    )
    sizes: dict[str, Any] = dict(part.settings)
    if part.family == "audiocraft":
        sizes = {
            "vocab_size": config.card,
            "num_hidden_layers": config.num_layers,
            "ffn_dim": config.ffn_dim,
            "num_attention_heads": config.num_heads,
            "hidden_size": config.dim,
            "num_codebooks": config.n_q,
        }
    sizes |= {"attn_implementation": "eager"}  # the default would ignore the mask
    model = decoder(decoder_config(**sizes))  # type: ignore[arg-type]
    tensors = dict(_lm_tensors(part))

    def project(x: np.ndarray, name: str) -> np.ndarray:
        weight, bias = (tensors.pop(f"{name}.{kind}") for kind in ("weight", "bias"))
        return x @ weight.astype(np.float32).T + bias.astype(np.float32)

    text = project(hidden, "enc_to_dec_proj") * mask[..., None]
    audio = heard
    if config.chroma_bins and heard is not None:
        audio = project(heard, "audio_enc_to_dec_proj")
    _fill(model, {k: v for k, v in tensors.items() if "embed_positions" not in k})
    if audio is not None:
        # Run rows one by one: transformers attends to the padding of a prefix and counts it.
        rows = []
        for i, row in enumerate(steps):
            prefix = np.concatenate([audio[i], text[i][mask[i]]])[None].astype(np.float32)
            with torch.no_grad():
                logits = model(
                    input_ids=torch.from_numpy(row.astype(np.int64)),
                    encoder_hidden_states=torch.from_numpy(prefix),
                ).logits.numpy()
            rows.append(logits[:, -row.shape[1] :])
        return np.stack(rows)
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(steps.astype(np.int64)).flatten(0, 1),
            encoder_hidden_states=torch.from_numpy(text.astype(np.float32)),
            encoder_attention_mask=torch.from_numpy(mask.astype(np.int64)),
        ).logits.numpy()
    return logits.reshape(*steps.shape, config.card)


# From audiocraft's words to transformers'; `in_proj_weight` is also split into three.
_LM_WORDS = (
    ("condition_provider.conditioners.description.output_proj.", "enc_to_dec_proj."),
    ("condition_provider.conditioners.self_wav.output_proj.", "audio_enc_to_dec_proj."),
    ("emb.", "model.decoder.embed_tokens."),
    ("linears.", "lm_heads."),
    ("out_norm.", "model.decoder.layer_norm."),
    ("transformer.layers.", "model.decoder.layers."),
    (".mha.", "."),
    (".norm1.", ".self_attn_layer_norm."),
    (".norm_cross.", ".encoder_attn_layer_norm."),
    (".norm2.", ".final_layer_norm."),
    (".cross_attention.", ".encoder_attn."),
    (".linear1.", ".fc1."),
    (".linear2.", ".fc2."),
)


def _lm_tensors(part: Part) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file of either family, with transformers' names."""
    for key, tensor in part.tensors.items():
        if key.endswith(".chroma.spec.window"):
            continue
        if style.KEY in part.tensors and key.startswith(style.PREFIX):
            continue
        if part.family == "transformers":
            yield key.removeprefix("decoder."), tensor.read()
            continue
        for old, new in _LM_WORDS:
            if key.startswith(old) or (old.startswith(".") and old in key):
                key = key.replace(old, new, 1)
        if key.endswith(".in_proj_weight"):
            for letter, rows in zip("qkv", np.split(tensor.read(), 3), strict=True):
                yield key.replace("in_proj_weight", f"{letter}_proj.weight"), rows
        else:
            yield key, tensor.read()


def _reference_mert(config: MertConfig, part: Part, audio: np.ndarray) -> np.ndarray:
    """Features [B, T, E] of audio [B, W]; MERT is the same network as HuBERT."""
    import torch
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim,
        "conv_dim": config.conv_dim,
        "conv_kernel": config.conv_kernel,
        "conv_stride": config.conv_stride,
        "num_conv_pos_embeddings": config.conv_pos_kernel,
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "attn_implementation": "eager",
    }
    model = transformers.HubertModel(transformers.HubertConfig(**sizes))
    names = {"weight_g": "original0", "weight_v": "original1"}
    tensors = {
        re.sub(r"\.(weight_[gv])$", lambda m: f".parametrizations.weight.{names[m[1]]}", key): t
        for key, t in part.tensors.items()
    }
    _fill(model, {key: t.read() for key, t in tensors.items()}, tied=("masked_spec_embed",))
    with torch.no_grad():
        return model(torch.from_numpy(audio)).last_hidden_state.numpy()


def _reference_codec(
    config: EncodecConfig, part: Part, audio: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [1, K, T] of the audio, and the audio decoded from them, [1, C, W]."""
    import torch
    import transformers

    sizes: dict[str, Any] = dict(part.settings) if part.family == "transformers" else {}
    sizes = sizes or {
        "audio_channels": config.channels,
        "sampling_rate": config.sample_rate,
        "num_filters": config.n_filters,
        "upsampling_ratios": list(config.ratios),
        "hidden_size": config.dimension,
        "codebook_dim": config.dimension,
        "codebook_size": config.bins,
        "kernel_size": config.kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "num_residual_layers": config.n_residual_layers,
        "dilation_growth_rate": config.dilation_base,
        "compress": config.compress,
        "num_lstm_layers": config.lstm,
        "pad_mode": config.pad_mode,
        "norm_type": config.norm,
        "use_causal_conv": config.causal,
        "trim_right_ratio": config.trim_right_ratio,
        "use_conv_shortcut": config.conv_shortcut,
    }
    # Use the parts of EncodecModel: the class itself refuses numbers of codes that are not powers
    # of two.
    classes = transformers.models.encodec.modeling_encodec
    settings = transformers.EncodecConfig(**sizes)
    per_book = settings.frame_rate * settings.codebook_nbits / 1000
    settings.target_bandwidths = [(config.n_q + 0.5) * per_book]
    model = torch.nn.Module()
    model.encoder = classes.EncodecEncoder(settings)
    model.decoder = classes.EncodecDecoder(settings)
    model.quantizer = classes.EncodecResidualVectorQuantizer(settings)
    names = encodec.table(config)
    tensors = {}
    for key, tensor in part.tensors.items():
        name = names.rename(key)
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            name = name.replace(f".conv.{old}", f".conv.parametrizations.weight.{new}")
        tensors[name] = tensor.read()
    _fill(model, tensors)
    with torch.no_grad():
        codes = model.quantizer.encode(model.encoder(torch.from_numpy(audio)), None)  # [K, 1, T]
        sound = model.decoder(model.quantizer.decode(codes))
    return codes.transpose(0, 1).numpy().astype(np.int32), sound.numpy()
