"""The language model and its generation against transformers' MusicGen, random tiny weights."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from flax import nnx  # noqa: E402
from transformers.modeling_outputs import BaseModelOutput  # noqa: E402

from musicgen_jax.config import STEREO_DELAYS, LMConfig  # noqa: E402
from musicgen_jax.nn.condition import Condition, Embedded  # noqa: E402
from musicgen_jax.nn.lm import LM  # noqa: E402
from tests.helpers.generation import generate_codes  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402

D, N, LAYERS, F, V, E = 32, 4, 3, 56, 16, 20
FRAMES = 12


def mono() -> LMConfig:
    return LMConfig(dim=D, num_heads=N, num_layers=LAYERS, card=V, ffn_dim=F, text_dim=E)


def stereo() -> LMConfig:
    return LMConfig(
        dim=D, num_heads=N, num_layers=LAYERS, card=V, ffn_dim=F, text_dim=E,
        n_q=8, delays=STEREO_DELAYS,
    )  # fmt: skip


def make_reference(config: LMConfig):
    """transformers' model of this size; built as a whole and eager, or its masks go missing."""
    text = transformers.T5Config(
        vocab_size=11, d_model=E, d_kv=5, d_ff=8, num_layers=1, num_heads=2
    )
    audio = transformers.EncodecConfig(
        num_filters=2, hidden_size=4, codebook_size=V, codebook_dim=4, upsampling_ratios=[2],
        num_lstm_layers=1,
    )  # fmt: skip
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=N, ffn_dim=F,
        num_codebooks=config.n_q, audio_channels=config.n_q // 4, pad_token_id=V, bos_token_id=V,
        dropout=0.0, max_position_embeddings=64,
    )  # fmt: skip
    whole = transformers.MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict()
    )
    whole._attn_implementation = "eager"
    model = transformers.MusicgenForConditionalGeneration(whole).eval()
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = V
    model.generation_config.decoder_start_token_id = V
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(mean + 0.3 * torch.randn(p.shape, generator=generator))
    return model


def to_ours(model, config: LMConfig) -> LM:
    """Our model with the weights of transformers' decoder and its text projection."""
    source = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    def take(name):
        return source[f"decoder.{name}"]

    def attention(prefix):
        qkv = [take(f"{prefix}.{part}_proj.weight") for part in "qkv"]
        return {
            "in_proj": {"weight": np.concatenate(qkv)},
            "out_proj": {"weight": take(f"{prefix}.out_proj.weight")},
        }

    def norm(prefix):
        return {"scale": take(f"{prefix}.weight"), "bias": take(f"{prefix}.bias")}

    def layer(i):
        at = f"model.decoder.layers.{i}"
        return {
            "norm1": norm(f"{at}.self_attn_layer_norm"),
            "self_attn": attention(f"{at}.self_attn"),
            "norm_cross": norm(f"{at}.encoder_attn_layer_norm"),
            "cross_attention": attention(f"{at}.encoder_attn"),
            "norm2": norm(f"{at}.final_layer_norm"),
            "linear1": {"weight": take(f"{at}.fc1.weight")},
            "linear2": {"weight": take(f"{at}.fc2.weight")},
        }

    books = range(config.n_q)
    embeddings = [take(f"model.decoder.embed_tokens.{k}.weight")[: V + 1] for k in books]
    tree = {
        "emb": {"embedding": np.stack(embeddings)},
        "transformer": {"layers": {i: layer(i) for i in range(LAYERS)}},
        "out_norm": norm("model.decoder.layer_norm"),
        "heads": {"weight": np.stack([take(f"lm_heads.{k}.weight") for k in books])},
        "text_conditioner": {
            "output_proj": {
                "weight": source["enc_to_dec_proj.weight"],
                "bias": source["enc_to_dec_proj.bias"],
            }
        },
    }
    lm = LM(config, rngs=nnx.Rngs(0))
    state = nnx.state(lm, nnx.Param)
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    assert shapes == jax.tree.map(np.shape, tree)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
    nnx.update(lm, state)
    return lm


@pytest.fixture(scope="module", params=[mono, stereo], ids=["mono", "stereo"])
def pair(request):
    config = request.param()
    model = make_reference(config)
    return model, to_ours(model, config)


@pytest.fixture(scope="module")
def mono_pair():
    model = make_reference(mono())
    return model, to_ours(model, mono())


def text(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[B, L]` and their mask."""
    ids = torch.from_numpy(np.random.default_rng(5).integers(2, 11, (len(lengths), max(lengths))))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(mask, ids, 0), mask.long()


def condition_of(model, lm: LM, ids, mask) -> Condition:
    """What our projection makes of their text encoder's output."""
    with torch.no_grad():
        hidden = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    mask = jnp.asarray(mask.numpy(), bool)
    return Condition(Embedded(lm.text_conditioner(jnp.asarray(hidden.numpy()), mask), mask))


def reference_codes(model, *, prompt=None, guidance=3.0, **inputs) -> np.ndarray:
    """transformers' greedy codes `[B, K, FRAMES]`."""
    books, batch = model.decoder.num_codebooks, len(inputs["attention_mask"])
    if prompt is not None:
        tokens = torch.from_numpy(prompt.reshape(batch * books, -1)).long()
        inputs["decoder_input_ids"] = tokens
    seen = []

    def spy(audio_codes, **_):
        seen.append(audio_codes)
        return SimpleNamespace(audio_values=torch.zeros(batch, 1, 1))

    model.audio_encoder.decode = spy
    try:
        with torch.no_grad():
            model.generate(
                **inputs,
                do_sample=False,
                guidance_scale=guidance,
                # It counts what the delays take away.
                max_new_tokens=FRAMES + 3 - (0 if prompt is None else prompt.shape[2]),
            )
    finally:
        del model.audio_encoder.decode
    if books == 4:
        return seen[0][0].numpy()
    left, right = (codes[0].numpy() for codes in seen)
    return np.stack([left, right], axis=2).reshape(batch, books, -1)


def test_full_sequence_logits(pair):
    model, lm = pair
    books, steps, lengths = lm.config.n_q, 9, [5, 3]
    tokens = np.random.default_rng(1).integers(0, V + 1, (2, books, steps))
    ids, mask = text(lengths)
    condition = condition_of(model, lm, ids, mask)
    with torch.no_grad():
        expected = model.decoder(
            input_ids=torch.from_numpy(tokens.reshape(-1, steps)),
            encoder_hidden_states=torch.from_numpy(np.array(condition.text.vectors)),
            encoder_attention_mask=mask,
        ).logits.numpy()
    logits = lm(jnp.asarray(tokens, jnp.int32), condition)
    assert_close(logits, expected.reshape(2, books, steps, V), 1e-5)


def test_greedy_codes_with_guidance(pair):
    model, lm = pair
    ids, mask = text([5])
    expected = reference_codes(model, input_ids=ids, attention_mask=mask)
    codes = generate_codes(
        lm, condition_of(model, lm, ids, mask), num_frames=FRAMES, use_sampling=False
    )
    np.testing.assert_array_equal(codes, expected)
    assert len(np.unique(codes)) > 4


def test_greedy_codes_of_a_padded_batch(mono_pair):
    model, lm = mono_pair
    ids, mask = text([6, 2])
    codes = generate_codes(
        lm, condition_of(model, lm, ids, mask), num_frames=FRAMES, use_sampling=False
    )
    np.testing.assert_array_equal(codes, reference_codes(model, input_ids=ids, attention_mask=mask))
    assert not np.array_equal(codes[0], codes[1])


def test_greedy_codes_after_a_prompt(pair):
    model, lm = pair
    ids, mask = text([4])
    prompt = np.random.default_rng(2).integers(0, V, (1, lm.config.n_q, 5)).astype(np.int32)
    codes = generate_codes(
        lm,
        condition_of(model, lm, ids, mask),
        num_frames=FRAMES,
        prompt=prompt,
        use_sampling=False,
    )
    np.testing.assert_array_equal(
        codes, reference_codes(model, input_ids=ids, attention_mask=mask, prompt=prompt)
    )
    np.testing.assert_array_equal(codes[:, :, :5], prompt)


def test_greedy_codes_without_a_condition(mono_pair):
    model, lm = mono_pair
    null = model.get_unconditional_inputs()
    expected = reference_codes(
        model,
        encoder_outputs=BaseModelOutput(null.encoder_outputs[0]),
        attention_mask=null.attention_mask,
        guidance=1.0,
    )
    codes = generate_codes(lm, Condition(), num_frames=FRAMES, use_sampling=False)
    np.testing.assert_array_equal(codes, expected)
