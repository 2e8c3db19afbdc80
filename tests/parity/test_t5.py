"""The T5 encoder and tokenizer against transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from musicgen_jax.config import T5Config  # noqa: E402
from musicgen_jax.nn.t5 import T5Encoder, relative_position_buckets  # noqa: E402
from musicgen_jax.storage.tokenizer import Tokenizer  # noqa: E402
from tests.helpers.tokenizers import SENTENCES, train  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402

CONFIGS = {
    "official buckets": T5Config(
        vocab_size=41, d_model=14, d_kv=5, d_ff=22, num_layers=3, num_heads=3
    ),
    "other buckets": T5Config(
        vocab_size=29,
        d_model=9,
        d_kv=7,
        d_ff=11,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=40,
        layer_norm_epsilon=1e-3,
    ),
}


def twins(config: T5Config):
    """The same random weights (std 0.3) in transformers and here."""
    torch.manual_seed(0)
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.relative_attention_num_buckets,
            relative_attention_max_distance=config.relative_attention_max_distance,
            layer_norm_epsilon=config.layer_norm_epsilon,
            feed_forward_proj="relu",
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "layer_norm" in name else 0.0, 0.3)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}

    def block(i):
        attention, ffn = f"encoder.block.{i}.layer.0.", f"encoder.block.{i}.layer.1."
        return {
            "attention_norm": {"scale": weights[attention + "layer_norm.weight"]},
            **{n: {"weight": weights[f"{attention}SelfAttention.{n}.weight"]} for n in "qkvo"},
            "ffn_norm": {"scale": weights[ffn + "layer_norm.weight"]},
            **{n: {"weight": weights[f"{ffn}DenseReluDense.{n}.weight"]} for n in ("wi", "wo")},
        }

    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tree = {
        "shared": {"embedding": weights["shared.weight"]},
        "relative_attention_bias": {"embedding": weights[bias]},
        "layers": {i: block(i) for i in range(config.num_layers)},
        "final_norm": {"scale": weights["encoder.final_layer_norm.weight"]},
    }
    ours = T5Encoder(config, rngs=nnx.Rngs(0))
    state = nnx.state(ours, nnx.Param)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(state)) == jax.tree.map(np.shape, tree)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
    nnx.update(ours, state)
    return theirs, ours


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths", [[7, 3], [1, 1], [13, 0, 5], [171, 150]], ids=str)
def test_hidden_states(name, lengths):
    config = CONFIGS[name]
    theirs, ours = twins(config)
    total = max(lengths)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (len(lengths), total))
    mask = np.arange(total) < np.array(lengths)[:, None]
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64))
        ).last_hidden_state.numpy()
    hidden = np.asarray(jax.jit(lambda m, i, k: m(i, k))(ours, ids.astype(np.int32), mask))
    assert_close(hidden[mask], expected[mask], 2e-5)
    assert np.all(np.isfinite(hidden))


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (12, 40), (8, 20), (64, 256)])
def test_buckets(num_buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    length = 2000
    expected = T5Attention._relative_position_bucket(
        torch.arange(1 - length, length), num_buckets=num_buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(
        relative_position_buckets(length, num_buckets, max_distance), expected.numpy()
    )


def test_gradients():
    theirs, ours = twins(CONFIGS["official buckets"])
    ids = np.random.default_rng(1).integers(3, 41, (2, 9))
    mask = np.arange(9) < np.array([9, 6])[:, None]
    weight = np.random.default_rng(2).standard_normal((2, 9, 14)).astype(np.float32)
    weight *= mask[..., None]
    output = theirs(
        input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64))
    ).last_hidden_state
    (output * torch.from_numpy(weight)).sum().backward()
    gradients = jax.grad(lambda m: jnp.sum(m(ids.astype(np.int32), mask) * weight))(ours)
    attention = theirs.encoder.block[0].layer[0].SelfAttention
    for ours_, theirs_, what in [
        (gradients.shared.embedding, theirs.shared.weight, "embedding"),
        (gradients.relative_attention_bias.embedding, attention.relative_attention_bias.weight, ""),
        (gradients.layers[0].q.weight, attention.q.weight, "q"),
        (
            gradients.layers[0].attention_norm.scale,
            theirs.encoder.block[0].layer[0].layer_norm.weight,
            "",
        ),
    ]:
        assert_close(ours_[...], theirs_.grad.numpy(), 1e-4, what)


def test_tokenizer_ids(tmp_path):
    path = train(tmp_path / "spiece.model")
    ours = Tokenizer(path)
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    texts = [
        *SENTENCES,
        "calm",
        "  calm \n piano\t strings ",
        "Words never seen: xylophone & ÅNGSTRÖM, naïve café №5 ½ ﬁn",
        "120bpm,techno;no spaces...at-all",
        "calm 🎹 piano 🥁🥁",
        "calm piano " * 200,
    ]
    expected = theirs(texts, padding=True, return_tensors="np")
    ids, mask = ours(texts)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"].astype(bool))
