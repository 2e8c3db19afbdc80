"""MERT against transformers' HuBERT, which is the same network."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from musicgen_jax.config import MertConfig  # noqa: E402
from musicgen_jax.convert import convert, verify  # noqa: E402
from musicgen_jax.convert import mert as table  # noqa: E402
from musicgen_jax.convert.pipeline import convert_part  # noqa: E402
from musicgen_jax.convert.settings import Part  # noqa: E402
from musicgen_jax.nn.mert import Mert  # noqa: E402
from tests.helpers.official_files import lazy  # noqa: E402
from tests.helpers.paths import GOLDENS  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402

CONFIGS = {
    "official strides, even kernel": MertConfig(
        conv_dim=(6, 5, 5, 6, 5, 5, 4), dim=12, num_heads=3, num_layers=3, ffn_dim=20,
        conv_pos_kernel=8, conv_pos_groups=2,
    ),
    "few layers, odd kernel": MertConfig(
        conv_dim=(5, 7), conv_kernel=(10, 3), conv_stride=(5, 2), dim=9, num_heads=1,
        num_layers=2, ffn_dim=11, conv_pos_kernel=5, conv_pos_groups=3,
    ),
}  # fmt: skip


features = jax.jit(Mert.__call__)


def hubert(config: MertConfig):
    """transformers' network with random weights (std 0.3)."""
    torch.manual_seed(0)
    theirs = transformers.HubertModel(
        transformers.HubertConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_dim,
            conv_dim=config.conv_dim,
            conv_kernel=config.conv_kernel,
            conv_stride=config.conv_stride,
            num_conv_pos_embeddings=config.conv_pos_kernel,
            num_conv_pos_embedding_groups=config.conv_pos_groups,
            feat_extract_norm="group",
            conv_bias=False,
            do_stable_layer_norm=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.3)
            if name.endswith("original0"):
                parameter.abs_().add_(0.5)
    return theirs


@pytest.fixture(scope="module", params=CONFIGS)
def twins(request):
    config = CONFIGS[request.param]
    theirs = hubert(config)
    tensors = {key: lazy(value.numpy()) for key, value in theirs.state_dict().items()}
    part = Part("transformers", tensors, theirs.config.to_dict(), "here")
    assert table.derive_config(part) == config
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Mert(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, convert_part("mert", part, config))
    ours = nnx.merge(graphdef, state)
    return theirs, ours


@pytest.mark.parametrize("extra", [0, 4321])
def test_features(twins, extra):
    """From the shortest clip there is to one of several frames, of odd length too."""
    theirs, ours = twins
    shortest = next(n for n in range(1, 999) if ours.config.num_frames(n))
    audio = np.random.default_rng(extra).uniform(-1, 1, (2, shortest + extra)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(audio)).last_hidden_state.numpy()
    assert expected.shape[1] == ours.config.num_frames(audio.shape[1])
    assert_close(features(ours, audio), expected)


def test_converted_style_model_verifies(tmp_path):
    """`convert --verify` of a whole style model, as far as transformers knows its parts."""
    goldens = GOLDENS
    places = {
        "t5_from": str(goldens / "mono/t5-base"),
        "encodec_from": str(goldens / "mono/audiocraft"),
    }
    convert(goldens / "style", tmp_path / "ours", **places)
    stages = verify.verify(goldens / "style", tmp_path / "ours", **places)
    assert [stage.name.split(",")[0] for stage in stages][:3] == ["T5", "LM", "MERT"]
    assert max(stage.error for stage in stages) < 1e-4


def test_silence_is_finite(twins):
    theirs, ours = twins
    shortest = next(n for n in range(1, 999) if ours.config.num_frames(n))
    audio = np.zeros((2, shortest + 4321), np.float32)  # compiled above
    with torch.no_grad():
        expected = theirs(torch.from_numpy(audio)).last_hidden_state.numpy()
    assert np.isfinite(expected).all()
    assert_close(features(ours, audio), expected)


def test_dtype():
    config = CONFIGS["few layers, odd kernel"]
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    ours = nnx.eval_shape(lambda: Mert(config, **types, rngs=nnx.Rngs(0)))
    assert jax.eval_shape(lambda m, x: m(x), ours, jnp.ones((1, 99))).dtype == jnp.bfloat16
    for path, leaf in jax.tree.leaves_with_path(nnx.state(ours)):
        name = jax.tree_util.keystr(path)
        layer_norm = "norm']" in name and "conv_norm" not in name
        assert leaf.dtype == (jnp.float32 if layer_norm else jnp.float16)
