import jax
import numpy as np
import pytest
from flax import nnx

from musicgen_jax import metrics
from musicgen_jax.config import MertConfig
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.mert_embedding import MertEmbedding
from musicgen_jax.nn.mert import Mert
from musicgen_jax.storage import checkpoint

CONFIG = MertConfig(
    conv_dim=(5, 7), conv_kernel=(10, 3), conv_stride=(5, 2), dim=8, num_heads=2,
    num_layers=2, ffn_dim=11, conv_pos_kernel=4, conv_pos_groups=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mert") / "mert"
    params = nnx.to_pure_dict(nnx.state(Mert(CONFIG, rngs=nnx.Rngs(0)), nnx.Param))
    with checkpoint.writing_model(path) as writer:
        writer.write_component("mert", params)
        writer.finish({"mert": CONFIG}, tokenizer=None, license="none", source={})
    return path


def test_the_level_does_not_count(folder):
    """The processor's normalisation, which the style conditioner leaves out."""
    embedding = MertEmbedding.from_pretrained(folder)
    wav = np.random.default_rng(0).normal(0, 0.05, (2, 3000)).astype(np.float32)
    rows = embedding.embed(wav, 24000)
    assert rows.shape == (CONFIG.num_frames(3000), CONFIG.dim)
    np.testing.assert_allclose(embedding.embed(4 * wav, 24000), rows, atol=0.02)
    mono = wav.mean(0, keepdims=True)
    mono = (mono - mono.mean()) / mono.std()
    expected = jax.jit(lambda network, x: network(x))(embedding.network, mono)[0]
    np.testing.assert_allclose(rows, expected, atol=0.02)


def test_what_is_refused(folder):
    with pytest.raises(UserError, match="too short for MERT"):
        MertEmbedding.from_pretrained(folder).embed(np.ones((1, 5), np.float32), 24000)
    with pytest.raises(UserError, match="convert FILE"):
        MertEmbedding.from_pretrained("/nowhere")
    with pytest.raises(UserError, match="holds no vggish, only mert"):
        metrics.Vggish.from_pretrained(folder)
