"""Every setting of the original code is read, refused where it would matter, or has no effect."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from musicgen_jax.convert import clap, convert, encodec, htdemucs, lm, mert, official, t5
from musicgen_jax.convert.known_settings import READ, TABLES, NoEffect, Only, check, unknown
from musicgen_jax.convert.pipeline import derive_configs, find_parts
from musicgen_jax.convert.settings import Part, read_xp_cfg
from musicgen_jax.convert.source import open_source
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint
from musicgen_jax.testing import DEBUG, DEBUG_MELODY, DEBUG_STEREO, DEBUG_STYLE
from tests.helpers.clap_files import transformers_part
from tests.helpers.official_files import (
    CODEC_CFG,
    LM_CFG,
    audiocraft_codec,
    audiocraft_lm,
    lazy,
    t5_state,
    write_audiocraft,
)
from tests.helpers.paths import GOLDENS

DERIVE = {
    "lm": lm.derive_config,
    "encodec": encodec.derive_config,
    "t5": t5.derive_config,
    "mert": mert.derive_config,
    "separator": htdemucs.derive_config,
    "clap": clap.derive_config,
}
SETTINGS = [
    pytest.param(family, component, name, rule, id=f"{family}-{component}-{name}")
    for (family, component), table in TABLES.items()
    for name, rule in table.items()
]


@pytest.fixture(scope="module")
def parts():
    """One part of every table; of audiocraft's language models the style model."""
    text = open_source(str(GOLDENS / "mono/transformers")).parts
    run = open_source(str(GOLDENS / "separation/955717e8-18a7d9ef.th")).parts
    return {
        ("audiocraft", "lm"): open_source(str(GOLDENS / "style")).parts["lm"],
        ("audiocraft", "encodec"): open_source(str(GOLDENS / "audiocraft/text")).parts["encodec"],
        **{("transformers", name): text[name] for name in ("lm", "t5", "encodec")},
        ("transformers", "mert"): open_source(str(GOLDENS / "style/MERT-v1-95M")).parts["mert"],
        ("transformers", "clap"): transformers_part(),
        ("demucs", "separator"): run["separator"],
    }


@pytest.mark.parametrize(("family", "component", "name", "rule"), SETTINGS)
def test_every_setting(family, component, name, rule, parts):
    part, derive = parts[family, component], DERIVE[component]
    config = derive(part)

    def changed(value):
        return part._replace(settings={**part.settings, name: value})

    if isinstance(rule, Only):
        assert derive(changed(rule.values[0])) == config
        for value in rule.values[1:]:
            assert derive(changed(value))
        with pytest.raises(UserError, match=f"{name} = odd, which is not supported: only"):
            derive(changed("odd"))
    elif isinstance(rule, NoEffect):
        assert rule.why
        for value in ("odd", "0.25", ["odd"]):
            assert derive(changed(value)) == config
    else:
        assert rule == READ


# What becomes of the settings that are read: another value gives another config or is refused.
READ_VALUES = {
    ("audiocraft", "lm"): {
        "transformer_lm.num_heads": "3",
        "codebooks_pattern.delay.delays": ["0", "0", "1", "1"],
        "fuser.cross": ["description"],
        "fuser.prepend": ["self_wav"],
        "conditioners.self_wav.style.transformer_scale": "large",
        "conditioners.self_wav.style.ds_factor": "7",
    },
    ("audiocraft", "encodec"): {
        "sample_rate": None,  # encodec.sample_rate says it
        "encodec.sample_rate": "16000",
        "encodec.causal": "true",
        "encodec.renormalize": "true",
        "seanet.compress": "4",
        "seanet.causal": "true",
        "seanet.norm": "time_group_norm",
        "seanet.true_skip": "false",
        "seanet.dilation_base": "3",
        "seanet.decoder.trim_right_ratio": "0.5",
    },
    ("transformers", "lm"): {
        "num_attention_heads": 3,
        "audio_channels": 2,
        "pad_token_id": 0,
        "bos_token_id": 0,
    },
    ("transformers", "t5"): {"relative_attention_max_distance": 30, "layer_norm_epsilon": 1e-3},
    ("transformers", "encodec"): {
        "sampling_rate": 16000,
        "compress": 4,
        "dilation_growth_rate": 3,
        "use_causal_conv": True,
        "use_conv_shortcut": True,
        "norm_type": "time_group_norm",
        "trim_right_ratio": 0.5,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.5,
    },
    ("transformers", "mert"): {
        "sample_rate": 16000,
        "num_attention_heads": 5,
        "conv_stride": [5, 2, 2, 2, 2, 2, 3],
    },
    ("transformers", "clap"): {
        "text_config/num_attention_heads": 2,
        "text_config/layer_norm_eps": 1e-5,
    },
}
# Those that are not the component's own: the pipeline reads them, and a test below tries them.
ELSEWHERE = {
    "conditioners.description.t5.name",
    "conditioners.self_wav.chroma_stem.sample_rate",
    "conditioners.self_wav.style.sample_rate",
    "interleave_stereo_codebooks.use",
    "chroma_length",
    "segment_duration",
}


def test_every_setting_that_is_read_is_tried():
    for key, table in TABLES.items():
        if key == ("demucs", "separator"):
            continue  # each in tests/conditioning/test_separation.py
        names = {name for name, rule in table.items() if rule == READ}
        assert names - ELSEWHERE == READ_VALUES[key].keys(), key


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [(key, name, value) for key, values in READ_VALUES.items() for name, value in values.items()],
)
def test_a_setting_that_is_read_changes_the_config(key, name, value, parts):
    part, derive = parts[key], DERIVE[key[1]]
    config = derive(part)
    settings = {**part.settings, name: value}
    if value is None:
        settings = {name: "16000"}  # alone it counts
    try:
        assert derive(part._replace(settings=settings)) != config
    except UserError as error:
        message = str(error)
        assert "\n" not in message


# --- Unknown settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("lm", "transformer_lm.rope_base"),
        ("lm", "fuser.scale"),
        ("lm", "codebooks_pattern.delay.jitter"),
        ("lm", "conditioners.genre.model"),
        ("lm", "conditioners.description.t5.truncate"),
        ("lm", "conditioners.self_wav.style.temperature"),
        ("lm", "interleave_stereo_codebooks.mid_side"),
        ("encodec", "seanet.encoder.lstm"),
        ("encodec", "seanet.norm_params.eps"),
        ("encodec", "seanet.decoder.n_filters"),
        ("encodec", "encodec.sigma"),
        ("encodec", "rvq.codebook_dim"),
    ],
)
def test_unknown_settings_of_a_section_that_is_read_are_refused(component, name, parts):
    part = parts["audiocraft", component]
    changed = part._replace(settings={**part.settings, name: "1"})
    with pytest.raises(UserError, match=f"{name} = 1, a setting that is not known"):
        DERIVE[component](changed)


def test_sections_of_training_are_left_alone(parts):
    extra = {"optim.lr": "1e-4", "dataset.batch_size": "192", "solver": "x", "fsdp.use": "true"}
    for component in ("lm", "encodec"):
        part = parts["audiocraft", component]
        changed = part._replace(settings={**part.settings, **extra})
        assert DERIVE[component](changed) == DERIVE[component](part)


def test_unknown_settings_of_transformers_are_told(tmp_path):
    folder = shutil.copytree(GOLDENS / "mono/transformers", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["my_setting"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    said = []
    find_parts(str(folder), log=said.append)
    assert said == ["lm: unknown settings, not used: my_setting"]


def test_all_that_official_files_hold_is_known(parts):
    folders = ("audiocraft/text", "audiocraft/melody", "audiocraft/stereo", "style", "training/lm")
    for name in folders:
        for component, part in open_source(str(GOLDENS / name)).parts.items():
            part.check(component)
    for key, part in parts.items():
        assert not unknown(part.settings, TABLES[key]) or key[0] == "audiocraft"


@pytest.mark.parametrize("config", [DEBUG, DEBUG_STEREO, DEBUG_MELODY, DEBUG_STYLE])
def test_all_that_is_written_is_known(config):
    if config.lm.style:  # audiocraft has names for eight heads and more
        style = dataclasses.replace(config.lm.style, num_heads=8)
        config = dataclasses.replace(config, lm=dataclasses.replace(config.lm, style=style))
    for component, settings in (
        ("lm", official.lm_settings(config)),
        ("encodec", official.codec_settings(config.encodec)),
    ):
        check(read_xp_cfg(official.to_yaml(settings)), TABLES["audiocraft", component], "x")


def test_numbers_are_compared_as_numbers():
    for value in ("1", "1.0", 1, 1.0, "1.0e+00"):
        assert Only("1").allows(value)
    for value in ("true", True, "1.1", None, ["1"], "one"):
        assert not Only("1").allows(value)
    assert Only(False).allows(False)
    assert not Only(False).allows("false")


# --- Settings of the whole model ---------------------------------------------------------------


def config_of(folder):
    parts = find_parts(str(folder)).parts
    configs, parts = derive_configs(parts)
    return configs, parts


@pytest.mark.parametrize("name", ["chroma_stem", "style"])
def test_conditioners_at_another_sample_rate_are_refused(name, tmp_path):
    cfg = f"{LM_CFG}conditioners:\n  self_wav:\n    {name}:\n      sample_rate: "
    folder = write_audiocraft(tmp_path / "m", lm_cfg=f"{cfg}4000\n")
    config_of(folder)
    folder = write_audiocraft(tmp_path / "n", lm_cfg=f"{cfg}16000\n")
    with pytest.raises(UserError, match=rf"{name}\.sample_rate = 16000"):
        config_of(folder)


@pytest.mark.parametrize("use", ["true", "false"])
@pytest.mark.parametrize("delays", [(0, 0, 1, 1), (0, 1, 2, 3)])
def test_the_setting_says_whether_it_is_stereo(use, delays, tmp_path):
    """Delays alone do not: two equal ones can be those of a mono model."""
    lines = "".join(f"    - {delay}\n" for delay in delays)
    cfg = (
        f"{LM_CFG}interleave_stereo_codebooks:\n  use: {use}\n"
        f"codebooks_pattern:\n  delay:\n    delays:\n{lines}"
    )
    folder = write_audiocraft(tmp_path / "m", lm_cfg=cfg)
    config = convert(folder, tmp_path / "ours")
    assert isinstance(config, type(DEBUG))
    assert config.lm.delays == delays
    assert (config.audio_channels, config.encodec.n_q) == ((2, 2) if use == "true" else (1, 4))
    assert checkpoint.load_config(tmp_path / "ours") == config


@pytest.mark.parametrize("filters", [2, 3, 5])
@pytest.mark.parametrize("compress", [1, 2])
def test_widths_that_compress_does_not_divide(filters, compress, tmp_path):
    sizes = vars(DEBUG.encodec) | {"n_filters": filters, "compress": compress}
    config = type(DEBUG.encodec)(**sizes)
    state = {key: lazy(value) for key, value in audiocraft_codec(config).items()}
    told = f"{CODEC_CFG}  compress: {compress}\n"
    for cfg in (CODEC_CFG, told):
        part = Part("audiocraft", state, read_xp_cfg(cfg), "x")
        assert encodec.derive_config(part) == config


def test_a_rate_of_the_codec_itself_counts(tmp_path):
    cfg = "sample_rate: 32000\nencodec:\n  sample_rate: 4000\nseanet:\n  pad_mode: reflect\n"
    folder = write_audiocraft(tmp_path / "m", codec_cfg=cfg)
    assert config_of(folder)[0]["encodec"] == DEBUG.encodec


def test_audiocraft_of_a_bare_state_dict_has_no_settings_to_check():
    state = {key: lazy(np.asarray(value)) for key, value in audiocraft_lm().items()}
    assert lm.derive_config(Part("audiocraft", state, {}, "x")).num_heads == 1
    assert t5.derive_config(
        Part("transformers", {k: lazy(v) for k, v in t5_state().items()}, {}, "x")
    )
