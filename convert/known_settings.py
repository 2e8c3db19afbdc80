"""All settings from which the original code builds a model, and how they are handled here.

A setting is read (`READ`: `derive_config` in the component's file uses it), supported only with
some values (`Only`), or without effect on the numbers (`NoEffect`, which gives the reason). If the
original reads a section, a setting in it that is not in the table is refused: the original code
would refuse it as well, or it comes from a version that computes something else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from musicgen_jax.errors import UserError


class Only:
    """A setting that is supported only with these values; the first value is the default."""

    def __init__(self, *values: Any):
        self.values = values

    def allows(self, value: Any) -> bool:
        """Whether `value` means one of the supported values: "1.0e+00" means 1."""
        return any(_same(value, allowed) for allowed in self.values)

    def __str__(self) -> str:
        return " or ".join(str(value) for value in self.values)


@dataclasses.dataclass(frozen=True)
class NoEffect:
    """A setting whose value cannot change a number of the converted model."""

    why: str


READ = "read"
Rule = Only | NoEffect | str
Known = Mapping[str, Rule]

_TENSORS = NoEffect("the tensors say it: a file in which they differ does not load in the original")
_TRAINING = NoEffect("only training uses it")
_SPEED = NoEffect("the same numbers, computed in another way")
_MACHINE = NoEffect("chosen when the model is loaded")


def check(settings: Mapping[str, Any], known: Known, origin: str) -> None:
    """Refuses the first setting that would change the numbers.

    Args:
      settings: the settings of one component, by dotted name.
      known: the component's table.
      origin: the file, for messages.

    Raises:
      UserError: a setting has an unsupported value, or is missing from the table although its
        section is in it.
    """
    for name, value in settings.items():
        rule = _rule(known, name)
        if isinstance(rule, Only) and not rule.allows(value):
            raise UserError(
                f"{origin} has {name} = {str(value)[:50]}, which is not supported: only {rule} is"
            )
    sections = {name.partition(".")[0] for name in known if "." in name}
    for name in unknown(settings, known):
        if name.partition(".")[0] in sections:
            value = str(settings[name])[:50]
            raise UserError(f"{origin} has {name[:100]} = {value}, a setting that is not known")


def unknown(settings: Mapping[str, Any], known: Known) -> list[str]:
    """Names of settings that are not in the table, not counting empty sections."""
    parents = {name[:i] for name in known for i, letter in enumerate(name) if letter == "."}
    return [
        name
        for name, value in settings.items()
        if _rule(known, name) is None and not (name in parents and value in ("{}", "null"))
    ]


def _rule(known: Known, name: str) -> Rule | None:
    """The rule for a setting; a `NoEffect` rule also covers all names below its own."""
    if name in known:
        return known[name]
    while "." in name:
        name = name.rpartition(".")[0]
        if isinstance(above := known.get(name), NoEffect):
            return above
    return None


def _same(value: Any, allowed: Any) -> bool:
    if value == allowed:
        return type(value) is not bool or type(allowed) is bool
    if isinstance(value, (list, bool)) or isinstance(allowed, bool):
        return False
    try:
        return float(value) == float(allowed)
    except (TypeError, ValueError):
        return False


# --- audiocraft: builders.get_lm_model, loaders.load_lm_model ------------------------------------

_T5 = "conditioners.description.t5"
_CHROMA = "conditioners.self_wav.chroma_stem"
_STYLE = "conditioners.self_wav.style"
AUDIOCRAFT_LM: Known = {
    "lm_model": Only("transformer_lm"),
    "transformer_lm.dim": _TENSORS,
    "transformer_lm.num_layers": _TENSORS,
    "transformer_lm.hidden_scale": _TENSORS,
    "transformer_lm.n_q": _TENSORS,
    "transformer_lm.card": _TENSORS,
    "transformer_lm.num_heads": READ,
    "transformer_lm.activation": Only("gelu"),
    "transformer_lm.norm": Only("layer_norm"),
    "transformer_lm.norm_first": Only("true"),
    "transformer_lm.bias_ff": _TENSORS,
    "transformer_lm.bias_attn": _TENSORS,
    "transformer_lm.bias_proj": _TENSORS,
    "transformer_lm.causal": Only("true"),
    "transformer_lm.past_context": Only("null"),
    "transformer_lm.layer_scale": Only("null"),
    "transformer_lm.positional_embedding": Only("sin"),
    "transformer_lm.max_period": Only("10000"),
    "transformer_lm.positional_scale": Only("1"),
    "transformer_lm.xpos": NoEffect("only rotary positions use it, which are refused"),
    "transformer_lm.cross_attention": _TENSORS,
    "transformer_lm.qk_layer_norm": Only("false"),
    "transformer_lm.qk_layer_norm_cross": Only("false"),
    "transformer_lm.kv_repeat": Only("1"),
    "transformer_lm.q_modeling": NoEffect("read only where codebooks_pattern.modeling is null"),
    "transformer_lm.dropout": _TRAINING,
    "transformer_lm.attention_dropout": _TRAINING,
    "transformer_lm.emb_lr": _TRAINING,
    "transformer_lm.lr": _TRAINING,
    "transformer_lm.weight_decay": _TRAINING,
    "transformer_lm.weight_init": _TRAINING,
    "transformer_lm.depthwise_init": _TRAINING,
    "transformer_lm.zero_bias_init": _TRAINING,
    "transformer_lm.checkpointing": _TRAINING,
    "transformer_lm.custom": _SPEED,
    "transformer_lm.memory_efficient": _SPEED,
    "transformer_lm.attention_as_float32": _SPEED,
    "transformer_lm.two_step_cfg": _SPEED,
    "codebooks_pattern.modeling": Only("delay"),
    "codebooks_pattern.delay.delays": READ,
    "codebooks_pattern.delay.flatten_first": Only("0"),
    "codebooks_pattern.delay.empty_initial": Only("0"),
    "codebooks_pattern.parallel": NoEffect("of another pattern"),
    "codebooks_pattern.unroll": NoEffect("of another pattern"),
    "codebooks_pattern.coarse_first": NoEffect("of another pattern"),
    "codebooks_pattern.music_lm": NoEffect("of another pattern"),
    "codebooks_pattern.musiclm": NoEffect("of another pattern"),
    "interleave_stereo_codebooks.use": READ,
    "interleave_stereo_codebooks.per_timestep": Only("false"),
    "fuser.cross": READ,
    "fuser.prepend": READ,
    "fuser.sum": Only("[]"),
    "fuser.ignore": Only("[]"),
    "fuser.input_interpolate": Only("[]"),
    "fuser.cross_attention_pos_emb": Only("false"),
    "fuser.cross_attention_pos_emb_scale": NoEffect("of positions that are refused"),
    "classifier_free_guidance.training_dropout": _TRAINING,
    "classifier_free_guidance.inference_coef": NoEffect(
        "MusicGen.set_generation_params always sets another: 3 by default"
    ),
    "attribute_dropout": NoEffect("only the loss uses it; generating drops nothing"),
    "conditioners.args.merge_text_conditions_p": _TRAINING,
    "conditioners.args.drop_desc_p": _TRAINING,
    "conditioners.description.model": Only("t5"),
    f"{_T5}.name": READ,
    f"{_T5}.finetune": Only("false"),
    f"{_T5}.normalize_text": Only("false"),
    f"{_T5}.word_dropout": _TRAINING,
    f"{_T5}.autocast_dtype": _MACHINE,
    "conditioners.self_wav.model": Only("chroma_stem", "style"),
    f"{_CHROMA}.sample_rate": READ,
    f"{_CHROMA}.n_chroma": _TENSORS,
    f"{_CHROMA}.radix2_exp": Only("14"),
    f"{_CHROMA}.argmax": Only("true"),
    f"{_CHROMA}.nfft": Only("null", "16384"),
    f"{_CHROMA}.winlen": Only("null", "16384"),
    f"{_CHROMA}.winhop": Only("null", "4096"),
    f"{_CHROMA}.norm": Only("inf", ".inf"),
    f"{_CHROMA}.match_len_on_eval": NoEffect("MusicGen.get_pretrained always sets it"),
    f"{_CHROMA}.eval_wavs": Only("null"),
    f"{_CHROMA}.n_eval_wavs": NoEffect("of eval_wavs, which are refused"),
    f"{_CHROMA}.cache_path": _SPEED,
    f"{_STYLE}.model_name": Only("mert"),
    f"{_STYLE}.transformer_scale": READ,
    f"{_STYLE}.sample_rate": READ,
    f"{_STYLE}.ds_factor": READ,
    f"{_STYLE}.n_q_out": _TENSORS,
    f"{_STYLE}.bins": _TENSORS,
    f"{_STYLE}.batch_norm": Only("true"),
    f"{_STYLE}.use_middle_of_segment": Only("false"),
    f"{_STYLE}.length": NoEffect("an argument of generation: excerpt_length"),
    f"{_STYLE}.eval_q": NoEffect("an argument of generation"),
    f"{_STYLE}.varying_lengths": _TRAINING,
    f"{_STYLE}.q_dropout": _TRAINING,
    f"{_STYLE}.rvq_threshold_ema_dead_code": _TRAINING,
    f"{_STYLE}.compute_mask": NoEffect("only the loss uses it"),
    f"{_STYLE}.num_codebooks_lm": NoEffect("only the loss uses it"),
    f"{_STYLE}.ds_rate_compression": NoEffect("only the loss uses it"),
    f"{_STYLE}.encodec_checkpoint": NoEffect("of the kind with EnCodec's features, refused"),
    f"{_STYLE}.encodec_n_q": NoEffect("of the kind with EnCodec's features, refused"),
}

# --- audiocraft: builders.get_compression_model --------------------------------------------------

AUDIOCRAFT_CODEC: Known = {
    "compression_model": Only("encodec"),
    "sample_rate": READ,
    "encodec.sample_rate": READ,
    "encodec.autoencoder": Only("seanet"),
    "encodec.quantizer": Only("rvq"),
    "encodec.channels": _TENSORS,
    "encodec.causal": READ,
    "encodec.renormalize": READ,
    "encodec.renorm": NoEffect("of an old version; the original drops it"),
    "seanet.channels": _TENSORS,
    "seanet.dimension": _TENSORS,
    "seanet.n_filters": _TENSORS,
    "seanet.n_residual_layers": _TENSORS,
    "seanet.ratios": _TENSORS,
    "seanet.kernel_size": _TENSORS,
    "seanet.last_kernel_size": _TENSORS,
    "seanet.residual_kernel_size": _TENSORS,
    "seanet.lstm": _TENSORS,
    "seanet.compress": READ,
    "seanet.causal": READ,
    "seanet.norm": READ,
    "seanet.norm_params": Only("{}"),
    "seanet.true_skip": READ,
    "seanet.dilation_base": READ,
    "seanet.pad_mode": Only("reflect", "constant"),
    "seanet.activation": Only("ELU"),
    "seanet.activation_params.alpha": Only("1"),
    "seanet.disable_norm_outer_blocks": Only("0"),
    "seanet.decoder.trim_right_ratio": READ,
    "seanet.decoder.final_activation": Only("null"),
    "seanet.decoder.final_activation_params": NoEffect("of an activation that is refused"),
    "seanet.encoder": Only("{}"),
    "rvq.n_q": _TENSORS,
    "rvq.bins": _TENSORS,
    "rvq.q_dropout": _TRAINING,
    "rvq.decay": _TRAINING,
    "rvq.kmeans_init": _TRAINING,
    "rvq.kmeans_iters": _TRAINING,
    "rvq.threshold_ema_dead_code": _TRAINING,
    "rvq.orthogonal_reg_weight": _TRAINING,
    "rvq.orthogonal_reg_active_codes_only": _TRAINING,
    "rvq.orthogonal_reg_max_codes": _TRAINING,
}

# --- transformers: the config classes of the components -------------------------------------------

_NOT_OF_THE_NETWORK = NoEffect("of the library, of generation or of labels, not of the network")
_LIBRARY: Known = {
    **dict.fromkeys(
        """
        architectures model_type torch_dtype dtype transformers_version _name_or_path
        _attn_implementation _attn_implementation_autoset attn_implementation _commit_hash
        is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size return_dict
        output_attentions output_hidden_states use_cache use_bfloat16 torchscript
        tie_encoder_decoder tie_word_embeddings chunk_size_feed_forward tokenizer_class prefix
        bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
        task_specific_params problem_type id2label label2id num_labels finetuning_task
        tf_legacy_loss max_length min_length do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
        no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
        output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
        remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens gradient_checkpointing
        """.split(),  # noqa: SIM905
        _NOT_OF_THE_NETWORK,
    ),
    "pruned_heads": Only({}),
}
TRANSFORMERS_LM: Known = {
    **_LIBRARY,
    "vocab_size": _TENSORS,
    "hidden_size": _TENSORS,
    "num_hidden_layers": _TENSORS,
    "ffn_dim": _TENSORS,
    "num_codebooks": _TENSORS,
    "num_attention_heads": READ,
    "audio_channels": READ,
    "activation_function": Only("gelu"),
    "scale_embedding": Only(False),
    "max_position_embeddings": NoEffect("the table of positions grows when it has to"),
    "pad_token_id": READ,
    "bos_token_id": READ,
    "chroma_length": READ,
    "segment_duration": READ,
    "dropout": _TRAINING,
    "attention_dropout": _TRAINING,
    "activation_dropout": _TRAINING,
    "layerdrop": _TRAINING,
    "initializer_factor": _TRAINING,
}
TRANSFORMERS_T5: Known = {
    **_LIBRARY,
    "vocab_size": _TENSORS,
    "d_model": _TENSORS,
    "d_kv": _TENSORS,
    "d_ff": _TENSORS,
    "num_layers": _TENSORS,
    "num_heads": _TENSORS,
    "relative_attention_num_buckets": _TENSORS,
    "relative_attention_max_distance": READ,
    "layer_norm_epsilon": READ,
    "feed_forward_proj": Only("relu"),
    "dense_act_fn": Only("relu"),
    "is_gated_act": Only(False),
    "num_decoder_layers": NoEffect("of the decoder, which MusicGen does not use"),
    "scale_decoder_outputs": NoEffect("of the decoder, which MusicGen does not use"),
    "n_positions": NoEffect("positions are relative"),
    "output_past": _NOT_OF_THE_NETWORK,
    "dropout_rate": _TRAINING,
    "classifier_dropout": _TRAINING,
    "initializer_factor": _TRAINING,
}
TRANSFORMERS_CODEC: Known = {
    **_LIBRARY,
    "audio_channels": _TENSORS,
    "num_filters": _TENSORS,
    "upsampling_ratios": _TENSORS,
    "hidden_size": _TENSORS,
    "codebook_dim": _TENSORS,
    "codebook_size": _TENSORS,
    "kernel_size": _TENSORS,
    "last_kernel_size": _TENSORS,
    "residual_kernel_size": _TENSORS,
    "num_residual_layers": _TENSORS,
    "num_lstm_layers": _TENSORS,
    "target_bandwidths": NoEffect("MusicGen uses as many codebooks as its language model has"),
    "sampling_rate": READ,
    "compress": READ,
    "dilation_growth_rate": READ,
    "use_causal_conv": READ,
    "use_conv_shortcut": READ,
    "norm_type": READ,
    "pad_mode": Only("reflect", "constant"),
    "trim_right_ratio": READ,
    "normalize": READ,
    "chunk_length_s": READ,
    "overlap": READ,
}
TRANSFORMERS_MERT: Known = {
    **_LIBRARY,
    "hidden_size": _TENSORS,
    "num_hidden_layers": _TENSORS,
    "intermediate_size": _TENSORS,
    "conv_dim": _TENSORS,
    "conv_kernel": _TENSORS,
    "num_feat_extract_layers": _TENSORS,
    "num_conv_pos_embeddings": _TENSORS,
    "num_conv_pos_embedding_groups": _TENSORS,
    "sample_rate": READ,
    "num_attention_heads": READ,
    "conv_stride": READ,
    "conv_bias": Only(False),
    "feat_extract_norm": Only("group"),
    "feat_extract_activation": Only("gelu"),
    "feat_proj_layer_norm": Only(True),
    "hidden_act": Only("gelu"),
    "do_stable_layer_norm": Only(False),
    "layer_norm_eps": Only(1e-5),
    # Names that HuBERT's config lacks, at least in some versions.
    "conv_pos_batch_norm": Only(False),
    "feature_extractor_cqt": Only(False),
    "feature_extractor_cqt_bins": NoEffect("of a transform that is refused"),
    "deepnorm": Only(False),
    "attention_relax": Only(-1.0),
    "vocab_size": _NOT_OF_THE_NETWORK,
    "classifier_proj_size": _NOT_OF_THE_NETWORK,
    "use_weighted_layer_sum": _NOT_OF_THE_NETWORK,
    "auto_map": _NOT_OF_THE_NETWORK,
    **dict.fromkeys(
        """
        activation_dropout attention_dropout hidden_dropout feat_proj_dropout final_dropout
        layerdrop initializer_range apply_spec_augment mask_time_prob mask_time_length
        mask_time_min_masks mask_feature_prob mask_feature_length mask_feature_min_masks
        ctc_loss_reduction ctc_zero_infinity
        """.split(),  # noqa: SIM905
        _TRAINING,
    ),
}

_FUSION = NoEffect("of fusion, which is refused")
_CLAP_TEXT: Known = {
    **_LIBRARY,
    "vocab_size": _TENSORS,
    "hidden_size": _TENSORS,
    "num_hidden_layers": _TENSORS,
    "intermediate_size": _TENSORS,
    "max_position_embeddings": _TENSORS,
    "type_vocab_size": _TENSORS,
    "projection_dim": _TENSORS,
    "num_attention_heads": READ,
    "layer_norm_eps": READ,
    "hidden_act": Only("gelu"),
    "projection_hidden_act": Only("relu"),
    "position_embedding_type": Only("absolute"),
    "pad_token_id": Only(1),
    "fusion_hidden_size": _FUSION,
    "fusion_num_hidden_layers": _FUSION,
    "classifier_dropout": _TRAINING,
    "initializer_range": _TRAINING,
    "initializer_factor": _TRAINING,
    "hidden_dropout_prob": _TRAINING,
    "attention_probs_dropout_prob": _TRAINING,
}
_CLAP_AUDIO: Known = {
    **_LIBRARY,
    "patch_embeds_hidden_size": _TENSORS,
    "hidden_size": _TENSORS,
    "depths": _TENSORS,
    "num_hidden_layers": _TENSORS,
    "num_attention_heads": _TENSORS,
    "projection_dim": _TENSORS,
    "qkv_bias": _TENSORS,
    "mlp_ratio": _TENSORS,
    "patch_embed_input_channels": _TENSORS,
    "window_size": Only(8),
    "patch_size": Only(4, [4, 4]),
    "patch_stride": Only([4, 4], 4),
    "spec_size": Only(256),
    "num_mel_bins": Only(64),
    "hidden_act": Only("gelu"),
    "projection_hidden_act": Only("relu"),
    "layer_norm_eps": Only(1e-5),
    "flatten_patch_embeds": Only(True),
    "enable_patch_layer_norm": Only(True),
    "enable_patch_fusion": Only(False),
    "enable_fusion": Only(False),
    "fusion_type": _FUSION,
    "fusion_num_hidden_layers": _FUSION,
    "aff_block_r": _FUSION,
    "num_classes": _NOT_OF_THE_NETWORK,
    "drop_path_rate": _TRAINING,
    "initializer_factor": _TRAINING,
    "hidden_dropout_prob": _TRAINING,
    "attention_probs_dropout_prob": _TRAINING,
}
_CLAP_FRONT_END: Known = {
    **_LIBRARY,
    "sampling_rate": Only(48000),
    "feature_size": Only(64),
    "fft_window_size": Only(1024),
    "n_fft": Only(1024),
    "nb_frequency_bins": Only(513),
    "hop_length": Only(480),
    "frequency_min": Only(50),
    "frequency_max": Only(14000),
    "top_db": Only(None),
    "max_length_s": Only(10),
    "chunk_length_s": Only(10),
    "nb_max_samples": Only(480000),
    "truncation": Only("rand_trunc"),
    "padding": Only("repeatpad"),
    "padding_value": Only(0),
    "padding_side": NoEffect("every clip is filled to 10 s first"),
    "return_attention_mask": NoEffect("the network has no use for it"),
    "feature_extractor_type": _NOT_OF_THE_NETWORK,
    "processor_class": _NOT_OF_THE_NETWORK,
}
TRANSFORMERS_CLAP: Known = {
    **_LIBRARY,
    "projection_dim": _TENSORS,
    "projection_hidden_act": Only("relu"),
    "hidden_size": _NOT_OF_THE_NETWORK,
    "num_hidden_layers": _NOT_OF_THE_NETWORK,
    "logit_scale_init_value": _TRAINING,
    "initializer_factor": _TRAINING,
    **{f"text_config/{name}": rule for name, rule in _CLAP_TEXT.items()},
    **{f"audio_config/{name}": rule for name, rule in _CLAP_AUDIO.items()},
    **{f"front end/{name}": rule for name, rule in _CLAP_FRONT_END.items()},
}

# --- demucs: the constructor of HTDemucs ----------------------------------------------------------

_SPARSE = NoEffect("of sparse attention, which is refused")
DEMUCS: Known = {
    "sources": READ,
    "samplerate": READ,
    "segment": READ,
    "audio_channels": READ,
    "channels": READ,
    "channels_time": READ,
    "growth": READ,
    "nfft": READ,
    "depth": READ,
    "kernel_size": READ,
    "stride": READ,
    "context": READ,
    "norm_starts": READ,
    "norm_groups": NoEffect("of norms in the encoder, which are refused"),
    "dconv_mode": READ,
    "dconv_depth": READ,
    "dconv_comp": READ,
    "bottom_channels": READ,
    "freq_emb": READ,
    "emb_scale": READ,
    "emb_smooth": _TRAINING,
    "t_layers": READ,
    "t_heads": READ,
    "t_hidden_scale": READ,
    "t_weight_pos_embed": READ,
    "t_cross_first": READ,
    "cac": Only(True),
    "rewrite": Only(True),
    "multi_freqs": Only(None, [], ()),
    "multi_freqs_depth": NoEffect("of multi_freqs, which are refused"),
    "context_enc": Only(0),
    "use_train_segment": Only(True),
    "t_emb": Only("sin"),
    "t_norm_in": Only(True),
    "t_norm_in_group": Only(False, 0),
    "t_group_norm": Only(False, 0),
    "t_norm_first": Only(True),
    "t_norm_out": Only(True),
    "t_max_period": Only(10000.0),
    "t_layer_scale": Only(True),
    "t_gelu": Only(True),
    "t_sin_random_shift": Only(0),
    "t_sparse_self_attn": Only(False),
    "t_sparse_cross_attn": Only(False),
    "t_mask_type": _SPARSE,
    "t_mask_random_seed": _SPARSE,
    "t_sparse_attn_window": _SPARSE,
    "t_global_window": _SPARSE,
    "t_sparsity": _SPARSE,
    "t_auto_sparsity": _SPARSE,
    "t_max_positions": NoEffect("of learned positions, which are refused"),
    "t_cape_mean_normalize": NoEffect("of CAPE positions, which are refused"),
    "t_cape_augment": NoEffect("of CAPE positions, which are refused"),
    "t_cape_glob_loc_scale": NoEffect("of CAPE positions, which are refused"),
    "t_dropout": _TRAINING,
    "t_weight_decay": _TRAINING,
    "t_lr": _TRAINING,
    "dconv_init": _TRAINING,
    "rescale": _TRAINING,
    "wiener_iters": NoEffect("of spectrograms without phase: cac is required"),
    "end_iters": NoEffect("of spectrograms without phase: cac is required"),
    "wiener_residual": NoEffect("of spectrograms without phase: cac is required"),
    "time_stride": NoEffect("of branches that merge, which are refused"),
}
TABLES: Mapping[tuple[str, str], Known] = {
    ("audiocraft", "lm"): AUDIOCRAFT_LM,
    ("audiocraft", "encodec"): AUDIOCRAFT_CODEC,
    ("transformers", "lm"): TRANSFORMERS_LM,
    ("transformers", "t5"): TRANSFORMERS_T5,
    ("transformers", "encodec"): TRANSFORMERS_CODEC,
    ("transformers", "mert"): TRANSFORMERS_MERT,
    ("transformers", "clap"): TRANSFORMERS_CLAP,
    ("demucs", "separator"): DEMUCS,
}
