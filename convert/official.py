"""Makes the settings of the official formats from our configs.

This is the inverse of `derive_config` in the components' files, which reads these settings.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from musicgen_jax.conditioning.chroma import frame_count
from musicgen_jax.config import EncodecConfig, LMConfig, MertConfig, MusicGenConfig, T5Config
from musicgen_jax.errors import UserError

T5_NAME = "t5-base"  # the name by which audiocraft finds the text encoder
# audiocraft's names for the sizes of StyleConditioner: (dim, heads, layers).
_STYLE_SCALES = {(256, 8, 4): "xsmall", (512, 8, 8): "default", (1024, 16, 24): "large"}


# --- audiocraft: the `xp.cfg` of an exported run ------------------------------------------------


def lm_settings(config: MusicGenConfig) -> dict[str, Any]:
    """The settings from which audiocraft builds a language model with its conditioners.

    Settings that only audiocraft's training reads are taken from its recipes.

    Raises:
      UserError: audiocraft has no such model.
    """
    lm, audio = config.lm, bool(config.lm.chroma_bins or config.lm.style)
    scale = lm.ffn_dim / lm.dim
    if int(scale * lm.dim) != lm.ffn_dim:
        raise UserError(f"audiocraft cannot express a feed-forward width of {lm.ffn_dim}")
    chroma = lm.chroma_window, lm.chroma_hop, lm.chroma_stride, lm.chroma_tonic
    if lm.chroma_bins and chroma != (16384, 4096, 0, None):
        raise UserError(
            f"audiocraft cannot express a chroma_window of {lm.chroma_window}, chroma_hop of "
            f"{lm.chroma_hop}, chroma_stride of {lm.chroma_stride} and chroma_tonic of "
            f"{lm.chroma_tonic}: only 16384, 4096, 0 and None"
        )
    text, wave = ["description"], ["self_wav"] if audio else []
    conditioners = {"self_wav": _wave_conditioner(config)} if audio else {}
    conditioners["description"] = {
        "model": "t5",
        "t5": {"name": T5_NAME, "finetune": False, "word_dropout": 0.3, "normalize_text": False},
    }
    return {
        "solver": "musicgen",
        "sample_rate": config.sample_rate,
        "channels": config.audio_channels,
        "device": "cpu",
        "dtype": "float32",
        "lm_model": "transformer_lm",
        "interleave_stereo_codebooks": {"use": config.audio_channels == 2, "per_timestep": False},
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": list(lm.delays), "flatten_first": 0, "empty_initial": 0},
        },
        "transformer_lm": {
            "dim": lm.dim,
            "num_heads": lm.num_heads,
            "num_layers": lm.num_layers,
            "hidden_scale": int(scale) if scale == int(scale) else scale,
            "n_q": lm.n_q,
            "card": lm.card,
            "dropout": 0.0,
            "emb_lr": None,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "norm": "layer_norm",
            "cross_attention": lm.conditioning == "cross",
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "attribute_dropout": {
            "args": {"active_on_eval": False},
            "text": {},
            "wav": dict.fromkeys(wave, 0.5),
        },
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [*wave, *text] if lm.conditioning == "prepend" else [],
            "cross": text if lm.conditioning == "cross" else [],
            "input_interpolate": [],
        },
        "conditioners": conditioners,
        "dataset": {"segment_duration": _whole(config.max_duration)},
    }


def _wave_conditioner(config: MusicGenConfig) -> dict[str, Any]:
    if config.lm.chroma_bins:
        chroma = {
            "sample_rate": config.sample_rate,
            "n_chroma": config.lm.chroma_bins,
            "radix2_exp": 14,
            "argmax": True,
            "match_len_on_eval": False,
            "eval_wavs": None,
            "n_eval_wavs": 100,
            "cache_path": None,
        }
        return {"model": "chroma_stem", "chroma_stem": chroma}
    style = config.lm.style
    assert style is not None
    sizes = style.dim, style.num_heads, style.num_layers
    known = {8: "default", 16: "large"}  # for other sizes, the reader needs only the heads
    scale = _STYLE_SCALES.get(sizes, known.get(style.num_heads))
    if scale is None:
        raise UserError(f"audiocraft has no style conditioner of {style.num_heads} heads")
    settings = {
        "model_name": "mert",
        "transformer_scale": scale,
        "sample_rate": config.sample_rate,
        "encodec_checkpoint": "//pretrained/facebook/encodec_32khz",
        "encodec_n_q": 3,
        "length": 3.0,
        "ds_factor": style.ds_factor,
        "n_q_out": style.n_q,
        "eval_q": min(3, style.n_q),
        "q_dropout": True,
        "bins": style.bins,
        "varying_lengths": [1.5, 4.5],
        "batch_norm": True,
        "compute_mask": True,
        "num_codebooks_lm": config.lm.n_q,
        "ds_rate_compression": config.encodec.hop_length,
        "use_middle_of_segment": False,
        "rvq_threshold_ema_dead_code": 0.1,
    }
    return {"model": "style", "style": settings}


def codec_settings(config: EncodecConfig) -> dict[str, Any]:
    """The settings from which audiocraft builds a codec.

    Raises:
      UserError: audiocraft has no such codec.
    """
    if config.chunk_length_s is not None:
        raise UserError("audiocraft has no codec that cuts a clip into segments")
    return {
        "solver": "compression",
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "device": "cpu",
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": config.sample_rate,
            "channels": config.channels,
            "causal": config.causal,
            "renormalize": config.normalize,
        },
        "seanet": {
            "dimension": config.dimension,
            "channels": config.channels,
            "causal": config.causal,
            "n_filters": config.n_filters,
            "n_residual_layers": config.n_residual_layers,
            "ratios": list(config.ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": config.norm,
            "norm_params": {},
            "kernel_size": config.kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "dilation_base": config.dilation_base,
            "pad_mode": config.pad_mode,
            "true_skip": not config.conv_shortcut,
            "compress": config.compress,
            "lstm": config.lstm,
            "disable_norm_outer_blocks": 0,
            "decoder": {
                "trim_right_ratio": config.trim_right_ratio,
                "final_activation": None,
                "final_activation_params": None,
            },
            "encoder": {},
        },
        "rvq": {
            "n_q": config.n_q,
            "q_dropout": False,
            "bins": config.bins,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 50,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
        "no_quant": {},
    }


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Writes settings in OmegaConf's block style."""
    return yaml.safe_dump(settings, default_flow_style=False, sort_keys=False)


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number


# --- transformers: config.json and its neighbours -----------------------------------------------


def model_config(config: MusicGenConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a whole model.

    Args:
      config: our config.
      dtype: dtype in which transformers should load the weights.

    Raises:
      UserError: transformers has no such model.
    """
    lm, channels = config.lm, config.audio_channels
    if lm.style is not None:
        raise UserError("transformers has no style model: write it as --format audiocraft")
    if lm.delays != tuple(k // channels for k in range(lm.n_q)):
        raise UserError(f"transformers has no model with delays of {lm.delays}")
    melody = bool(lm.chroma_bins)
    if melody != (lm.conditioning == "prepend"):
        raise UserError(f"transformers has no model with {lm.conditioning!r} conditioning alone")
    kind, name = ("musicgen_melody", "MusicgenMelody") if melody else ("musicgen", "Musicgen")
    own: dict[str, Any] = {}
    if melody:
        samples = int(config.max_duration * config.sample_rate)
        if lm.chroma_stride or lm.chroma_tonic is not None:
            raise UserError("transformers cannot express a chroma_stride or chroma_tonic")
        frames = frame_count(samples, lm.chroma_window, lm.chroma_hop)
        own = {"num_chroma": lm.chroma_bins, "chroma_length": frames}
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        "dtype": dtype,
        # audiocraft's name; transformers stores it but does not use it.
        "segment_duration": _whole(config.max_duration),
        **own,
        "text_encoder": t5_config(config.t5),
        "audio_encoder": codec_config(config.encodec),
        "decoder": _decoder_config(lm, f"{kind}_decoder", channels),
    }


def _decoder_config(lm: LMConfig, kind: str, channels: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": lm.card,
        "hidden_size": lm.dim,
        "num_hidden_layers": lm.num_layers,
        "num_attention_heads": lm.num_heads,
        "ffn_dim": lm.ffn_dim,
        "num_codebooks": lm.n_q,
        "audio_channels": channels,
        "activation_function": "gelu",
        "scale_embedding": False,
        "max_position_embeddings": 2048,
        "pad_token_id": lm.special_token,
        "bos_token_id": lm.special_token,
        "tie_word_embeddings": False,
    }


def t5_config(config: T5Config) -> dict[str, Any]:
    """T5's config, on its own or inside a whole model's config."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "feed_forward_proj": "relu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def mert_config(config: MertConfig) -> dict[str, Any]:
    """MERT's config.json."""
    return {
        "architectures": ["MERTModel"],
        "model_type": "mert_model",
        "sample_rate": config.sample_rate,
        "conv_dim": list(config.conv_dim),
        "conv_kernel": list(config.conv_kernel),
        "conv_stride": list(config.conv_stride),
        "conv_bias": False,
        "hidden_size": config.dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.ffn_dim,
        "num_conv_pos_embeddings": config.conv_pos_kernel,
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "hidden_act": "gelu",
        "do_stable_layer_norm": False,
        "layer_norm_eps": 1e-5,
    }


def codec_config(config: EncodecConfig) -> dict[str, Any]:
    """EnCodec's config, on its own or inside a whole model's config.

    Raises:
      UserError: transformers has no such codec.
    """
    if config.bins & (config.bins - 1):
        raise UserError(
            f"transformers loads a codec only if its number of codes is a power of two, not "
            f"{config.bins}: write it as --format audiocraft"
        )
    return {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "sampling_rate": config.sample_rate,
        "audio_channels": config.channels,
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
        "use_conv_shortcut": config.conv_shortcut,
        "trim_right_ratio": config.trim_right_ratio,
        "normalize": config.normalize,
        "chunk_length_s": config.chunk_length_s,
        "overlap": config.overlap if config.chunk_length_s is not None else None,
        # Transformers computes the number of codebooks from the bit rate, rounding down.
        "target_bandwidths": [config.bandwidth],
    }


def generation_config(config: MusicGenConfig) -> dict[str, Any]:
    """Transformers' settings for generation: those of the official models, at most one window."""
    special = config.lm.special_token
    return {
        "bos_token_id": special,
        "pad_token_id": special,
        "decoder_start_token_id": special,
        "do_sample": True,
        "guidance_scale": 3.0,
        "max_length": int(config.max_duration * config.frame_rate),
    }


def preprocessor_config(config: MusicGenConfig) -> dict[str, Any]:
    """Transformers' settings for preparing audio."""
    if config.lm.chroma_bins:
        return {
            "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
            "processor_class": "MusicgenMelodyProcessor",
            "feature_size": config.lm.chroma_bins,
            "num_chroma": config.lm.chroma_bins,
            "sampling_rate": config.sample_rate,
            "chunk_length": _whole(config.max_duration),
            "n_fft": config.lm.chroma_window,
            "hop_length": config.lm.chroma_hop,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "stem_indices": [3, 2],
        }
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "processor_class": "MusicgenProcessor",
        "feature_size": config.audio_channels,
        "sampling_rate": config.sample_rate,
        "padding_side": "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "chunk_length_s": None,
        "overlap": None,
    }


TOKENIZER_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "extra_ids": 100,
    "model_max_length": 512,
}
