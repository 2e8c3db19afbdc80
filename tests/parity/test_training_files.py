"""Files that torch and omegaconf write now, whatever their version: read as their YAML is."""

import pytest

from musicgen_jax.convert import convert
from musicgen_jax.convert.settings import TRAINING_NAMES, read_config, read_xp_cfg
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.errors import UserError
from musicgen_jax.testing import DEBUG

torch = pytest.importorskip("torch")
omegaconf = pytest.importorskip("omegaconf")

from tests.goldens import make_training_goldens as make  # noqa: E402

KINDS = """\
text: a b
quoted: 'true'
number: 3
negative: -4
real: 0.25
small: 1.0e-09
large: 1.0e+20
on_it: true
off_it: false
nothing: null
missing: ???
empty_map: {}
empty_list: []
list: [1, two, 3.5, null, true]
nested: {a: {b: {c: 1, d: [x]}}}
reference: ${nested.a.b.c}
through: ${reference}
partly: it is ${number}
12: a number as a key
"""


@pytest.mark.parametrize("text", [KINDS, make.LM_YAML, make.CODEC_YAML])
@pytest.mark.parametrize("struct", [False, True])
def test_settings_are_those_of_the_yaml(tmp_path, text, struct):
    config = omegaconf.OmegaConf.create(text)
    omegaconf.OmegaConf.set_struct(config, struct)
    assert omegaconf.OmegaConf.select(config, "number", default=3) == 3  # fills its caches
    torch.save({"xp.cfg": config}, tmp_path / "x.th")
    read = read_torch(tmp_path / "x.th", inert=TRAINING_NAMES)["xp.cfg"]
    expected = read_xp_cfg(omegaconf.OmegaConf.to_yaml(config))
    assert read_config(read) == expected
    assert len(expected) > 8


def test_a_run_of_today_converts(tmp_path):
    make.write(tmp_path / "run")
    config = convert(tmp_path / "run" / "codec", tmp_path / "ours")
    assert config == {"encodec": DEBUG.encodec}


def test_typed_settings_are_refused_by_name(tmp_path):
    """Classes of somebody's own cannot be known; nothing of audiocraft uses them."""
    import dataclasses

    @dataclasses.dataclass
    class Own:
        x: int = 3

    Own.__module__, Own.__qualname__ = "tests.parity", "Own"
    import tests.parity

    tests.parity.Own = Own  # type: ignore[attr-defined]
    try:
        torch.save({"xp.cfg": omegaconf.OmegaConf.structured(Own)}, tmp_path / "x.th")
    finally:
        del tests.parity.Own  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"it names 'tests\.parity\.Own'"):
        read_torch(tmp_path / "x.th", inert=TRAINING_NAMES)
