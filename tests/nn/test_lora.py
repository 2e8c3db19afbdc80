"""Adapters: beside the weights, in the weights, in files, and at generation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from musicgen_jax import MusicGen
from musicgen_jax.commands import cli
from musicgen_jax.errors import UserError
from musicgen_jax.nn import lora
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.storage import checkpoint, lora_file
from musicgen_jax.testing import DEBUG, DEBUG_MELODY, random_params, save_random_model
from tests.helpers.lm_models import array
from tests.helpers.tolerance import assert_close

LAYER = "transformer/layers/0"
EVERYTHING = lora.LoraConfig(rank=3)
QV = lora.LoraConfig(rank=3, alpha=6.0, target="self_attn/in_proj/[qv]$")


def random_adapter(config=DEBUG.lm, settings=EVERYTHING, seed=0, std=0.3):
    weights = lora.init(config, settings, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    weights = jax.tree.map(lambda x: rng.normal(0, std, x.shape).astype(np.float32), weights)
    return lora.Adapter(settings, config, "debug", weights)


forward = jax.jit(LM.__call__)


def lm_params(config=DEBUG.lm):
    lm = module_shapes(LM, config)
    return random_params(nnx.to_pure_dict(nnx.state(lm, nnx.Param)))


def logits(config, params, *, settings=None):
    lm = module_shapes(LM, config)
    if settings is not None:
        lora.attach(lm, settings)
    lm = nnx.merge(nnx.split(lm)[0], params)
    rng = np.random.default_rng(1)
    steps = array(rng.integers(0, config.card, (2, config.n_q, 7)), jnp.int32)
    text = array(rng.normal(size=(2, 5, config.dim)), jnp.float32)
    mask = jax.device_put(np.arange(5) < np.array([[5], [3]]))
    return forward(lm, steps, Condition(Embedded(text, mask)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "model"
    save_random_model(path, DEBUG)
    return path


# --- Targets -----------------------------------------------------------------------------------


def test_fused_matrices_are_three_targets():
    names = [name for name in lora.targets(DEBUG.lm, lora.EVERYWHERE) if name.startswith(LAYER)]
    attention = ("in_proj/q", "in_proj/k", "in_proj/v", "out_proj")
    assert set(names) == {
        *(f"{LAYER}/self_attn/{name}" for name in attention),
        *(f"{LAYER}/cross_attention/{name}" for name in attention),
        f"{LAYER}/linear1",
        f"{LAYER}/linear2",
    }
    dim = DEBUG.lm.dim
    weights = lora.init(DEBUG.lm, QV, jax.random.key(0))
    assert {name.rsplit("/", 1)[1] for name in weights} == {"q", "v"}
    pair = weights[f"{LAYER}/self_attn/in_proj/v"]
    assert (pair["a"].shape, pair["b"].shape) == ((3, dim), (dim, 3))
    # Only the values' rows change, and only by what was asked for.
    change = lora.changes(random_adapter(settings=QV), 0.5)
    whole = change["transformer", "layers", "1", "self_attn", "in_proj", "weight"]
    assert whole.shape == (3 * dim, dim)
    assert not whole[dim : 2 * dim].any()
    pair = random_adapter(settings=QV).weights["transformer/layers/1/self_attn/in_proj/v"]
    np.testing.assert_allclose(whole[2 * dim :], pair["b"] @ pair["a"], rtol=1e-6)  # 0.5 * 6 / 3


def test_settings_that_make_no_sense():
    with pytest.raises(UserError, match=r"'mlp' matches none of .*layers/0/self_attn/in_proj/q"):
        lora.init(DEBUG.lm, lora.LoraConfig(target="mlp"), jax.random.key(0))
    for values in (
        {"rank": 0},
        {"rank": 10**9},
        {"target": "a{99999999999}"},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"target": "("},
    ):
        with pytest.raises(ValueError, match=next(iter(values))):
            lora.LoraConfig(**values)


# --- Beside the weights and in them ------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings"),
    [(DEBUG.lm, EVERYTHING), (DEBUG.lm, QV), (DEBUG_MELODY.lm, lora.LoraConfig(2))],
)
def test_beside_is_as_within(config, settings):
    params = lm_params(config)
    adapter = random_adapter(config, settings)
    beside = lora.join(params, adapter.weights, config, settings)
    plain, within = logits(config, params), logits(config, lora.merge(params, adapter))
    assert_close(logits(config, beside, settings=settings), within)
    assert np.abs(within - plain).max() > 0.1


def test_a_new_adapter_changes_nothing():
    params, settings = lm_params(), lora.LoraConfig(rank=3)
    weights = lora.init(DEBUG.lm, settings, jax.random.key(0))
    a = np.concatenate([pair["a"].ravel() for pair in weights.values()])
    assert abs(a.std() * DEBUG.lm.dim**0.5 - 1) < 0.15
    merged = lora.merge(params, lora.Adapter(settings, DEBUG.lm, "", weights))
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merging_is_exact_and_copies_nothing_else():
    params = lm_params()
    params["heads"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["heads"])
    adapter = random_adapter(settings=QV)
    merged = lora.merge(params, adapter, 0.5)
    path = ("transformer", "layers", "1", "self_attn", "in_proj", "weight")
    change = lora.changes(adapter, 0.5)[path]
    before, after = (leaf(tree, path) for tree in (params, merged))
    np.testing.assert_array_equal(after, np.asarray(before) + change)
    same = jax.tree.map(lambda x, y: x is y, params, merged)
    assert [p for p, kept in jax.tree_util.tree_leaves_with_path(same) if not kept] == [
        p for p, _ in jax.tree_util.tree_leaves_with_path(same) if "self_attn" in str(p)
        and "in_proj" in str(p)
    ]  # fmt: skip


def leaf(tree, path):
    for name in path:
        tree = tree[next(key for key in tree if str(key) == name)]
    return tree


def test_gradients_reach_the_adapter_alone():
    """B's is the weight's gradient times A's transpose, without the weight's ever being made."""
    params, settings = lm_params(), QV
    weights = random_adapter(settings=settings).weights

    def loss(params, weights):
        joined = lora.join(params, weights, DEBUG.lm, settings)
        return logits(DEBUG.lm, joined, settings=settings).var()

    of_base, of_weights = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, weights)
    name, dim = f"{LAYER}/self_attn/in_proj/v", DEBUG.lm.dim
    whole = leaf(of_base, (*LAYER.split("/"), "self_attn", "in_proj", "weight"))[2 * dim :]
    assert_close(of_weights[name]["b"], settings.scale * whole @ weights[name]["a"].T)
    assert_close(of_weights[name]["a"], settings.scale * weights[name]["b"].T @ whole)


# --- Files -------------------------------------------------------------------------------------


def test_files_keep_every_bit(tmp_path):
    adapter = random_adapter()
    lora_file.save(tmp_path / "new" / "mine.safetensors", adapter)
    loaded = lora_file.load(tmp_path / "new" / "mine.safetensors", DEBUG.lm)
    assert dataclasses.replace(loaded, weights={}) == dataclasses.replace(adapter, weights={})
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, adapter.weights)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["mine.safetensors"]


def test_another_models_adapter_is_refused(tmp_path):
    lora_file.save(tmp_path / "a", random_adapter())
    other = dataclasses.replace(DEBUG.lm, ffn_dim=40)
    with pytest.raises(UserError, match=r"trained for debug .* ffn_dim is 24 there, but 40"):
        lora_file.load(tmp_path / "a", other)


def damaged(tmp_path, change):
    """An adapter's file after `change(tensors, header)`."""
    lora_file.save(tmp_path / "good", random_adapter(settings=QV))
    tensors = safetensors.numpy.load_file(tmp_path / "good")
    with safetensors.safe_open(tmp_path / "good", framework="np") as file:
        header = json.loads(file.metadata()["lora"])
    change(tensors, header)
    safetensors.numpy.save_file(tensors, tmp_path / "bad", {"lora": json.dumps(header)})
    return tmp_path / "bad"


NAME = f"{LAYER}/self_attn/in_proj/q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop(f"{NAME}.a"), "missing or unexpected"),
        (lambda t, h: t.update({"transformer/x.a": np.ones(3, np.float32)}), "no matrix"),
        (lambda t, h: t.update({f"{NAME}.a": np.ones((2, 16), np.float32)}), r"not F32 \(3, 16\)"),
        (lambda t, h: t.update({f"{NAME}.a": np.ones((3, 16), np.float16)}), "is F16"),
        (lambda t, h: t.update({f"{NAME}.a": np.full((3, 16), np.nan, np.float32)}), "not finite"),
        (lambda t, h: h.update(format="else"), "is not an adapter"),
        (lambda t, h: h["config"].update(rank=-1), "rank must be from 1 to"),
        (lambda t, h: h["config"].update(rank="many"), "config.rank must be a whole number"),
        (lambda t, h: h["lm"].update(num_layers=10**9), "lm.num_layers must be from 1 to 10000000"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        lora_file.load(damaged(tmp_path, change), DEBUG.lm)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    for data in (b"", b"PK", b"\xff" * 100):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            lora_file.load(tmp_path / "x")
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "y")
    with pytest.raises(UserError, match="is not an adapter of musicgen-jax"):
        lora_file.load(tmp_path / "y")
    with pytest.raises(UserError, match="no adapter at"):
        lora_file.load(tmp_path / "none")


# --- At generation -----------------------------------------------------------------------------


def codes(model):
    return model.generate(["a slow song"], duration=0.4, use_sampling=False).codes


def test_models_with_adapters_by_name(folder, tmp_path):
    first, second = random_adapter(seed=1), random_adapter(settings=QV, seed=2)
    lora_file.save(tmp_path / "first", first)
    lora_file.save(tmp_path / "second", second)
    plain = MusicGen.from_pretrained(
        folder, adapters={"one": tmp_path / "first", "two": tmp_path / "second"}
    )
    one = plain.use_adapter("one")
    params = nnx.to_pure_dict(nnx.state(plain.lm, nnx.Param))
    expected = lora.merge(params, first)
    ours = nnx.to_pure_dict(nnx.state(one.lm, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert one.t5 is plain.t5
    assert one.encodec is plain.encodec
    shared = jax.tree.leaves(jax.tree.map(lambda x, y: x is y, ours, params))
    assert sum(shared) == len(shared) - 2 * 6  # 2 layers with 6 adapted weights

    both = one.use_adapter({"one": 1.0, "two": -0.5})
    expected = lora.merge(expected, second, -0.5)
    ours = nnx.to_pure_dict(nnx.state(both.lm, nnx.Param))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, expected)
    assert both.use_adapter(None).lm is plain.lm
    before, with_one = codes(plain), codes(one)
    assert (before != with_one).any()
    np.testing.assert_array_equal(codes(one.use_adapter("one", 0.0)), before)
    with pytest.raises(UserError, match="no adapter 'three': there is one, two"):
        plain.use_adapter("three")
    with pytest.raises(UserError, match="scale of adapter 'one' must be a number"):
        plain.use_adapter("one", float("nan"))


def test_an_int8_model_rounds_what_the_adapter_has_been_added_to(folder, tmp_path):
    adapter = random_adapter(std=0.02)  # smaller than the steps of int8
    lora_file.save(tmp_path / "a", adapter)
    model = MusicGen.from_pretrained(folder, dtype="int8", adapters={"a": tmp_path / "a"})
    info = checkpoint.load_info(folder)
    abstract = module_shapes(LM, DEBUG.lm)
    floats = checkpoint.load_params(folder, "lm", nnx.to_pure_dict(nnx.state(abstract, nnx.Param)))
    parts = {name: checkpoint.load_params(folder, name, shapes(name)) for name in ("t5", "encodec")}
    checkpoint.save_model(
        tmp_path / "merged",
        DEBUG,
        parts | {"lm": lora.merge(floats, adapter)},
        tokenizer=folder / checkpoint.TOKENIZER,
        license="none",
        source=info.source,
    )
    expected = MusicGen.from_pretrained(tmp_path / "merged", dtype="int8")
    trees = [nnx.to_pure_dict(nnx.state(m.lm)) for m in (model.use_adapter("a"), expected, model)]
    # Stored scales were divided by NumPy, those of a loaded model by XLA: a last bit may differ.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *trees[:2])
    differ = jax.tree.map(lambda x, y: bool((x != y).any()), trees[0], trees[2])
    assert any(jax.tree.leaves(differ))
    alone = MusicGen(DEBUG, model.t5, model.lm, model.encodec, model.tokenizer)
    alone.adapters = model.adapters
    with pytest.raises(UserError, match="int8 weights take no adapter"):
        alone.use_adapter("a")


def shapes(component):
    from musicgen_jax.convert.pipeline import abstract_params

    return abstract_params(component, getattr(DEBUG, component))


def test_command_line(folder, tmp_path, capsys):
    file = tmp_path / "mine.safetensors"
    lora_file.save(file, random_adapter())

    def make(*arguments):
        out = tmp_path / "out.wav"
        command = ["generate", "a song", "--model", str(folder), "-o", str(out), "--greedy"]
        command += ["--duration", "0.4", "--save-codes", *arguments]
        assert cli.main(command) == 0
        return np.load(out.with_suffix(".npy"))

    plain = make()
    assert (make("--adapter", str(file)) != plain).any()
    np.testing.assert_array_equal(make("--adapter", f"{file}:0"), plain)
    twice = make("--adapter", f"{file}:0.75", "--adapter", f"{file}:0.25")
    np.testing.assert_array_equal(twice, make("--adapter", str(file)))
    capsys.readouterr()
    for text, message in (
        (f"{file}:much", "'much' is not a number"),
        ("none:1", "no adapter at none"),
    ):
        assert cli.main(["generate", "x", "--model", str(folder), "--adapter", text]) == 2
        assert message in capsys.readouterr().err
