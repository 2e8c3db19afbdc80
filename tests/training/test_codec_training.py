"""What trains a codec against audiocraft's numbers, see make_codec_training_goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.nn.encodec.quantizer import ResidualVectorQuantizer
from musicgen_jax.training import (
    adversarial,
    balancer,
    codebooks,
    discriminator,
    reconstruction,
    weight_norm,
)
from tests.helpers import paths
from tests.helpers.tolerance import assert_close

GOLDENS = paths.GOLDENS / "codec_training"
DISCRIMINATOR = discriminator.DiscriminatorConfig(
    filters=3, n_ffts=(64, 128, 33), hop_lengths=(16, 48, 11), win_lengths=(64, 96, 33)
)


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        return dict(file)


# --- The adversary -----------------------------------------------------------------------------


def discriminator_params(weights: dict[str, np.ndarray]) -> dict:
    """audiocraft's names and axes to ours: [O, I, time, freq] -> [time, freq, I, O]."""
    params: dict = {}
    for name, value in weights.items():
        if "window" in name:  # torchaudio keeps it among the weights
            continue
        path = name.replace(".conv.", ".").split(".")
        if path[-1].startswith("weight"):
            value = value.transpose(2, 3, 1, 0)
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(value)
    return params


@pytest.fixture(scope="module")
def judge():
    """audiocraft's numbers, the same weights here, and a function of weights and audio."""
    numbers = golden("discriminator")
    weights = {k.removeprefix("weights/"): v for k, v in numbers.items() if k[:8] == "weights/"}
    net = nnx.eval_shape(
        lambda: discriminator.MultiScaleSTFTDiscriminator(DISCRIMINATOR, 2, rngs=nnx.Rngs(0))
    )
    graphdef, _ = nnx.split(net, nnx.Param)
    run = jax.jit(lambda params, audio: nnx.merge(graphdef, weight_norm.fold(params))(audio))
    return numbers, discriminator_params(weights), run


def test_discriminator_sees_what_audiocrafts_sees(judge):
    numbers, params, run = judge
    logits, maps = run(params, numbers["fake"])
    for i, value in enumerate(logits):
        expected = numbers[f"logits/{i}"]  # [B, 1, T, F]
        assert_close(jnp.moveaxis(value, 3, 1), expected)
        for j, layer in enumerate(maps[i]):
            assert_close(jnp.moveaxis(layer, 3, 1), numbers[f"maps/{i}/{j}"], what=f"{i}/{j}")
    assert sum(len(layers) for layers in maps) == sum(k[:5] == "maps/" for k in numbers)


def test_new_discriminator_has_audiocrafts_parameters(judge):
    _, params, _ = judge
    net = discriminator.MultiScaleSTFTDiscriminator(DISCRIMINATOR, 2, rngs=nnx.Rngs(0))
    plain = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    ours = discriminator.split(plain, DISCRIMINATOR)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, params)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), weight_norm.fold(ours), plain)


@pytest.mark.parametrize("kind", ["hinge", "hinge2", "mse"])
def test_adversarial_losses_and_their_gradients(judge, kind):
    numbers, params, run = judge
    real, fake = jnp.asarray(numbers["real"]), jnp.asarray(numbers["fake"])

    def adv(output):
        return adversarial.generator_loss(kind, run(params, output)[0])

    def feat(output):
        return adversarial.feature_matching_loss(run(params, output)[1], run(params, real)[1])

    for name, function in (("adv", adv), ("feat", feat)):
        value, gradient = jax.jit(jax.value_and_grad(function))(fake)
        assert_close(value, numbers[f"{kind}/{name}"], what=name)
        assert_close(gradient, numbers[f"{kind}/{name}_grad"], what=f"{name}'s gradient")
    logits = run(params, fake)[0], run(params, real)[0]
    assert_close(adversarial.discriminator_loss(kind, *logits), numbers[f"{kind}/d_loss"])


def test_adversary_learns_from_the_same_gradient(judge):
    numbers, params, run = judge

    def loss(params):
        fake, real = run(params, numbers["fake"])[0], run(params, numbers["real"])[0]
        return adversarial.discriminator_loss("hinge", fake, real)

    names = {k.removeprefix("grads/"): v for k, v in numbers.items() if k[:6] == "grads/"}
    expected = discriminator_params(names)
    found = jax.jit(jax.grad(loss))(params)
    paths = jax.tree_util.tree_flatten_with_path(found)[0]
    for (path, value), other in zip(paths, jax.tree.leaves(expected), strict=True):
        assert_close(value, other, what=jax.tree_util.keystr(path))


# --- The balancer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "config"),
    [
        ("item", balancer.BalancerConfig(ema_decay=0.9)),
        ("batch", balancer.BalancerConfig(per_batch_item=False, ema_decay=0.9, total_norm=2.5)),
        ("plain", balancer.BalancerConfig(ema_decay=1.0)),
        ("unbalanced", balancer.BalancerConfig(balance_grads=False)),
    ],
)
def test_balanced_gradients_over_several_steps(way, config):
    numbers = golden("balancer")
    weights = {"a": 2.0, "b": 0.5, "c": 1.5}
    state = balancer.BalancerState.start(weights)
    for i, (output, target) in enumerate(zip(numbers["outputs"], numbers["targets"], strict=True)):
        functions = {
            "a": lambda y, x=target: jnp.abs(y - x).mean(),
            "b": lambda y, x=target, i=i: 100 * jnp.square(y - x).mean() * (i + 1),
            "c": lambda y, x=target: (y * x).mean() - y[0].mean(),
        }
        both = {name: jax.value_and_grad(f)(output) for name, f in functions.items()}
        losses = {name: value for name, (value, _) in both.items()}
        grads = {name: grad for name, (_, grad) in both.items()}
        gradient, state, metrics = balancer.combine(config, state, weights, losses, grads)
        assert_close(gradient, numbers[f"{way}/{i}/grad"])
        assert_close(metrics["g_loss"], numbers[f"{way}/{i}/loss"])
        for name in weights:
            assert_close(metrics[f"ratio_{name}"], numbers[f"{way}/{i}/ratio_{name}"])


# --- Losses of waveforms -----------------------------------------------------------------------

RATE = 8000
LOSSES = {
    **{
        name: reconstruction.losses(RATE, ())[name]
        for name in ("l1", "l2", "mel", "msspec", "mrstft", "sisnr")
    },
    "msspec_alphas": lambda output, target: reconstruction.multi_scale_mel_loss(
        output, target, RATE, range_start=5, range_end=9, f_min=0.0, normalized=False, alphas=True
    ),
    "mrstft_small": lambda output, target: reconstruction.mrstft_loss(
        output,
        target,
        n_ffts=(64, 128),
        hop_lengths=(12, 25),
        win_lengths=(60, 101),
        factor_sc=0.3,
        factor_mag=0.2,
    ),
    "sisnr_pieces": lambda output, target: reconstruction.si_snr_loss(
        output, target, RATE, segment=0.05
    ),
    "sisnr_whole": lambda output, target: reconstruction.si_snr_loss(output, target, RATE),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_waveforms_and_their_gradients(name):
    numbers = golden("reconstruction")
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(
        jnp.asarray(numbers["output"]), jnp.asarray(numbers["target"])
    )
    assert_close(value, numbers[f"{name}/loss"])
    # Logarithms of nearly nothing have gradients that hang on the last bits.
    assert_close(gradient, numbers[f"{name}/grad"], relative=1e-3)


@pytest.mark.parametrize("name", [*LOSSES, "waveform", "spectral"])
def test_losses_have_finite_gradients_in_silence_and_perfection(name):
    function = {**reconstruction.losses(RATE, (64,)), **LOSSES}[name]
    gradient = jax.jit(jax.grad(function))
    sound = 0.1 * jax.random.normal(jax.random.key(0), (1, 1, 1200))
    for output, target in ((sound, sound), (0 * sound, 0 * sound), (sound, 0 * sound)):
        assert np.isfinite(gradient(output, target)).all()


# --- Codebooks ---------------------------------------------------------------------------------


def stacked(numbers: dict, prefix: str) -> jax.Array:
    return jnp.stack([jnp.asarray(numbers[f"{prefix}/{k}"]) for k in range(3)])


def test_quantizer_trains_like_audiocrafts():
    numbers = golden("codebooks")
    quantizer = ResidualVectorQuantizer(3, 7, 5, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(quantizer, nnx.Param)
    state = codebooks.CodebookState(
        *(stacked(numbers, f"0/{x}") for x in ("embed", "count", "total"))
    )
    for i in range(3):
        n_q = int(numbers[f"{i}/n_q"])
        latents = jnp.asarray(numbers[f"{i}/latents"]).swapaxes(1, 2)
        pull = jnp.asarray(numbers[f"{i}/pull"]).swapaxes(1, 2)

        def loss(latents, embed, n_q=n_q, pull=pull):
            quantizer = nnx.merge(graphdef, {"embed": embed})
            out = codebooks.quantize(quantizer, latents, n_q)
            commitment = codebooks.commitment_loss(out.commitment, n_q, "all")
            return (out.latents * pull).sum() + 3 * commitment, out

        gradient, out = jax.jit(jax.grad(loss, has_aux=True))(latents, state.embed)
        assert_close(out.latents.swapaxes(1, 2), numbers[f"{i}/quantized"])
        np.testing.assert_array_equal(out.codes.swapaxes(0, 1)[:n_q], numbers[f"{i}/codes"])
        assert_close(out.commitment[:n_q], numbers[f"{i}/losses"])
        assert_close(gradient.swapaxes(1, 2), numbers[f"{i}/grad"])
        state = codebooks.update(
            state,
            latents.reshape(-1, 5),
            out.codes.swapaxes(1, 2).reshape(-1, 3),
            jax.random.key(0),
            decay=0.9,
            dead_below=0.0,
            num_books=n_q,
        )
        for name in ("embed", "count", "total"):
            assert_close(getattr(state, name), stacked(numbers, f"{i + 1}/{name}"), what=name)


def test_kmeans_rounds_are_audiocrafts():
    numbers = golden("kmeans")
    centres = numbers["start"]
    for i in range(4):
        centres, count = codebooks.lloyd(numbers["vectors"], centres)
        if i + 1 in (1, 4):
            assert_close(centres, numbers[f"means/{i + 1}"])
            np.testing.assert_array_equal(count, numbers[f"bins/{i + 1}"])
    assert count[4] == 0  # the case in which a centre stays


def test_commitment_of_the_books_in_use():
    values = jnp.asarray([1.0, 2.0, 6.0])
    assert codebooks.commitment_loss(values, 2, "all") == 1.5
    assert codebooks.commitment_loss(values, 2, "last") == 2
    assert codebooks.commitment_loss(values, 3, "all") == 3


def test_usage_of_even_and_single_codes():
    found = codebooks.usage(np.array([[5, 5, 5, 5], [0, 9, 0, 0]]))
    assert found["perplexity_0"] == pytest.approx(4)
    assert (found["entropy_0"], found["usage_0"]) == (2, 1)
    assert (found["entropy_1"], found["perplexity_1"], found["usage_1"]) == (0, 1, 0.25)


# --- Weight normalisation ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kept"), [("conv", 2), ("convtr", 1)])
def test_weight_norm_is_pytorchs(name, kept):
    numbers = golden("weight_norm")
    # [O, I, k] and, transposed, [I, O, k] -> [k, I, O]
    axes = (2, 1, 0) if name == "conv" else (2, 0, 1)
    g, v, weight = (
        jnp.asarray(numbers[f"{name}/{x}"]).transpose(axes) for x in ("g", "v", "weight")
    )
    assert_close(weight_norm.fold({"weight_g": g, "weight_v": v})["weight"], weight)
    again = weight_norm.split({"weight": weight, "bias": v}, lambda path, leaf: kept)
    assert_close(again["weight_g"], jnp.abs(g))
    assert again["bias"] is v
