"""Many devices give what one gives, hold only their parts, and exchange only activations."""

import dataclasses
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from musicgen_jax import testing
from musicgen_jax.commands.cli import main
from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.errors import UserError
from musicgen_jax.generation import program
from musicgen_jax.model import MusicGen
from musicgen_jax.runtime import sharding
from musicgen_jax.runtime.tuning import TPU, Tuning
from musicgen_jax.storage import checkpoint
from tests.helpers import shallow
from tests.helpers.generation import generate_codes
from tests.helpers.tolerance import assert_close

TEXTS = ["a calm waltz", "drums", None]  # three rows: they divide no mesh
SHORT = {"duration": 0.3}

# Four heads and books, so that two devices share all of the text model.
LM = dataclasses.replace(shallow.TEXT.lm, num_heads=4)
TEXT = dataclasses.replace(shallow.TEXT, lm=LM)


def make(config, data=None, model=1) -> MusicGen:
    mesh = None if data is None else sharding.make_mesh(data=data, model=model)
    return testing.random_model(config, mesh=mesh)


@pytest.fixture(scope="module")
def single():
    """What one device makes of the text model."""
    model = make(TEXT)
    greedy = model.generate(TEXTS, use_sampling=False, **SHORT)
    sampled = model.generate(TEXTS, seed=3, **SHORT)
    assert (greedy.codes != sampled.codes).any()
    return SimpleNamespace(
        greedy=greedy, sampled=sampled, logits=model.lm_logits(greedy.codes, TEXTS)
    )


@pytest.mark.parametrize(("data", "model"), [(1, 1), (4, 2)])
def test_a_mesh_makes_what_one_device_makes(single, data, model):
    spread = make(TEXT, data, model)
    assert spread.mesh == sharding.make_mesh(data=data, model=model)
    greedy = spread.generate(TEXTS, use_sampling=False, **SHORT)
    np.testing.assert_array_equal(greedy.codes, single.greedy.codes)
    assert_close(greedy.audio, single.greedy.audio, 1e-5)
    sampled = spread.generate(TEXTS, seed=3, **SHORT)
    np.testing.assert_array_equal(sampled.codes, single.sampled.codes)
    logits = np.asarray(spread.lm_logits(greedy.codes, TEXTS))
    known = np.isfinite(single.logits)
    np.testing.assert_array_equal(np.isfinite(logits), known)
    assert_close(logits[known], np.asarray(single.logits)[known], 1e-5)


def test_heads_side_by_side_make_the_same(single):
    """What a TPU does: two heads in each of two blocks of the cache, one on each device."""
    spread = make(TEXT, 2, 2)
    spread.lm.tuning = TPU.spread(LM.num_heads, 2)
    assert spread.lm.cache_groups == 2
    greedy = spread.generate(TEXTS, use_sampling=False, **SHORT)
    np.testing.assert_array_equal(greedy.codes, single.greedy.codes)


def test_a_cache_grows_on_a_mesh(single):
    spread = make(TEXT, 2, 2)
    spread.lm.tuning = Tuning(cache_lengths=(8, 16, 32, 256), grow_cache_above=(0.0, 0))
    greedy = spread.generate(TEXTS, use_sampling=False, **SHORT)
    np.testing.assert_array_equal(greedy.codes, single.greedy.codes)
    assert greedy.codes.shape[2] > 8


def test_melody_on_a_mesh():
    """The prefix model: null rows that are attended; three rows of each example."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 1, 4000)).astype(np.float32)
    melody = [noise[0], None, noise[2]]
    settings = {"separate": False, "seed": 3, "cfg_coef_beta": 2.0, **SHORT}
    expected, made = (
        make(shallow.MELODY, *mesh).generate_with_chroma(TEXTS, melody, 4000, **settings)
        for mesh in ((), (4, 2))
    )
    np.testing.assert_array_equal(made.codes, expected.codes)


def test_stereo_on_a_mesh_continued_and_streamed():
    """Eight books, codes of audio, and the decoder that carries its state from block to block."""
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 400)).astype(np.float32)
    config = shallow.STEREO
    one, many = make(config), make(config, 4, 2)
    codes = np.asarray(one.encode(audio, one.sample_rate))
    np.testing.assert_array_equal(many.encode(audio, one.sample_rate), codes)
    settings = {"prompt_codes": codes, "seed": 3, "duration": 1.2}
    expected = one.generate(TEXTS, **settings)
    stretches = list(many.stream(TEXTS, chunk_seconds=0.4, **settings))
    assert len(stretches) > 2
    assert_close(np.concatenate(stretches, axis=2), expected.audio, 1e-5)


# --- Where weights lie ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, TEXT)
    return path


def shard_shape(param) -> tuple[int, ...]:
    shapes = {shard.data.shape for shard in param[...].addressable_shards}
    assert len(shapes) == 1
    return shapes.pop()


def bytes_on(device, module) -> int:
    leaves = jax.tree.leaves(nnx.state(module))
    shards = (shard for leaf in leaves for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def test_weights_are_read_straight_to_their_parts(folder, monkeypatch):
    plain = MusicGen.from_pretrained(folder)
    read = []
    real = checkpoint.load_params
    monkeypatch.setattr(
        checkpoint, "load_params", lambda *args: read.append(real(*args)) or read[-1]
    )
    mesh = sharding.make_mesh(data=2, model=2)
    model = MusicGen.from_pretrained(folder, mesh=mesh)
    lm = read[1]
    fused = lm["transformer"]["layers"][0]["self_attn"]["in_proj"]["weight"]
    assert fused.shape == (48, 16)
    assert {shard.data.shape for shard in fused.addressable_shards} == {(48, 8)}

    layer = model.lm.transformer.layers[0]
    assert shard_shape(layer.self_attn.in_proj.weight) == (3, 8, 16)  # two heads' q, k and v
    assert shard_shape(layer.cross_attention.out_proj.weight) == (16, 8)
    assert shard_shape(layer.linear1.weight) == (12, 16)
    assert shard_shape(layer.linear2.weight) == (16, 12)
    assert shard_shape(model.lm.heads.weight) == (2, 37, 16)
    assert shard_shape(model.t5.layers[0].q.weight) == (3, 12)
    assert shard_shape(model.t5.shared.embedding) == (40, 12)
    assert shard_shape(layer.norm1.scale) == (16,)
    for device in mesh.devices.flat:
        for component, most in (("lm", 0.75), ("t5", 0.65)):
            whole = bytes_on(jax.devices()[0], getattr(plain, component))
            assert bytes_on(device, getattr(model, component)) < most * whole
    assert bytes_on(jax.devices()[4], model.lm) == 0


def test_int8_on_a_mesh(tmp_path):
    original = make(TEXT)
    checkpoint.save_model(
        tmp_path / "int8",
        TEXT,
        testing.model_params(original),
        tokenizer=testing.character_tokenizer(),
        license="",
        source={},
        storage="int8",
    )
    one = MusicGen.from_pretrained(tmp_path / "int8")
    many = MusicGen.from_pretrained(tmp_path / "int8", mesh=sharding.make_mesh(data=4, model=2))
    assert shard_shape(many.lm.transformer.layers[0].self_attn.in_proj.weight) == (3, 8, 16)
    for model in (one, many):
        # The same tokenizer, so nothing is compiled that has not been before.
        model.parts = dataclasses.replace(model.parts, tokenizer=original.tokenizer)
    expected = one.generate(TEXTS, seed=1, **SHORT)
    assert (one.lm.heads.weight[...] != original.lm.heads.weight[...]).any()
    np.testing.assert_array_equal(many.generate(TEXTS, seed=1, **SHORT).codes, expected.codes)

    quick = MusicGen.from_pretrained(tmp_path / "int8", dtype="int8")
    spread = MusicGen.from_pretrained(
        tmp_path / "int8", dtype="int8", mesh=sharding.make_mesh(data=2, model=2)
    )
    layer = spread.lm.transformer.layers[0]
    assert shard_shape(layer.self_attn.in_proj.weight.int8) == (3, 8, 16)
    assert shard_shape(layer.self_attn.in_proj.weight.scale) == (3, 8, 1)
    assert shard_shape(layer.linear2.weight.int8) == (16, 12)
    assert shard_shape(layer.linear2.weight.scale) == (16, 1)
    texts = expected.codes, TEXTS
    known = np.isfinite(quick.lm_logits(*texts))
    assert_close(spread.lm_logits(*texts)[known], quick.lm_logits(*texts)[known], 1e-5)


def test_what_does_not_divide_stays_whole():
    large = OFFICIAL_MODELS["facebook/musicgen-large"]

    def spec(path, model):
        mesh = sharding.make_mesh(model=model)
        component = path.split("/")[0]
        return sharding.spec_of(path, getattr(large, component), mesh)

    layer = "lm/transformer/layers/47"
    assert spec(f"{layer}/self_attn/in_proj/weight", 8) == P(None, "model")
    assert spec(f"{layer}/cross_attention/out_proj/weight", 8) == P(None, "model")
    assert spec(f"{layer}/linear1/weight", 8) == P("model")
    assert spec("lm/heads/weight", 4) == P("model")
    assert spec("lm/heads/weight", 8) == P(), "4 books"
    # 2048 columns would divide by 3 no better than 32 heads; 12 heads of T5 do, its 3072 too.
    assert spec(f"{layer}/self_attn/in_proj/weight", 3) == P()
    assert spec("t5/layers/0/q/weight", 3) == P("model")
    assert spec("t5/layers/0/q/weight", 8) == P(), "heads are not cut, though 768 rows divide"
    for whole in (f"{layer}/norm1/scale", "lm/emb/embedding", "encodec/decoder/layers/0/weight"):
        assert spec(whole, 2) == P()
    # A style model has a transformer of its own, which is not in the table.
    assert spec("lm/style_conditioner/transformer/layers/0/linear1/weight", 2) == P()


def test_a_model_axis_that_divides_half_of_the_weights():
    """Two heads on four devices: attention is whole, its feed-forward layers and books are not."""
    config = dataclasses.replace(TEXT, lm=dataclasses.replace(LM, num_heads=2))
    alone, spread = make(config), make(config, 2, 4)
    condition = alone.text_condition(TEXTS)
    expected = generate_codes(alone.lm, condition, num_frames=15, seed=3)
    layer = spread.lm.transformer.layers[0]
    assert shard_shape(layer.self_attn.in_proj.weight) == (48, 16)
    assert shard_shape(layer.linear1.weight) == (6, 16)
    made = generate_codes(spread.lm, condition, num_frames=15, seed=3)
    np.testing.assert_array_equal(made, expected)


def test_a_weight_of_three_parts_is_three_weights():
    rng = np.random.default_rng(0)
    attention = make(TEXT).lm.transformer.layers[0].self_attn
    x = jnp.asarray(rng.standard_normal((2, 5, 16)), jnp.float32)
    whole = attention.qkv(x)
    attention.in_proj.weight = nnx.Param(attention.in_proj.weight[...].reshape(3, 16, 16))
    for a, b in zip(whole, attention.qkv(x), strict=True):
        assert_close(a, b, 1e-6)
    cross = attention.cross_cache(x, x.dtype)
    for a, b in zip(whole[1:], (cross.k, cross.v), strict=True):
        assert_close(a, b, 1e-6)


# --- What is compiled -----------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """Abstract arguments of every call of the decode loop."""
    calls, real = [], program._advance

    def abstract(x):
        if isinstance(x, jax.Array):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        return x

    def record(*args, **static):
        calls.append((jax.tree.map(abstract, args), static))
        return real(*args, **static)

    monkeypatch.setattr(program, "_advance", record)
    return SimpleNamespace(calls=calls, real=real)


_EXCHANGE = re.compile(
    r"= \(?(\w+)\[([\d,]*)\]\S* (all-gather|all-reduce|all-to-all|collective-permute|"
    r"reduce-scatter|collective-broadcast)(?:-start)?\("
)


@pytest.mark.parametrize(("data", "groups"), [(4, 4), (1, 2)])
def test_the_loop_exchanges_activations_only(single, decoded, data, groups):
    """Per step the sums of each sublayer and the tokens; no weight, no cache."""
    spread = make(TEXT, data, 2)
    spread.lm.tuning = Tuning(heads_per_block=LM.num_heads // groups)
    sampled = spread.generate(TEXTS, seed=3, **SHORT)
    np.testing.assert_array_equal(sampled.codes, single.sampled.codes)
    args, static = decoded.calls[0]
    text = decoded.real.lower(*args, **static).compile().as_text()
    found = sorted(
        (kind, dtype, math.prod(map(int, sizes.split(","))))
        for dtype, sizes, kind in _EXCHANGE.findall(text)
    )
    examples = math.ceil(len(TEXTS) / data)
    # Null rows have no part in cross-attention.
    crossed, others = (("all-reduce", "f32", n * examples * LM.dim) for n in (1, 2))
    sums = [crossed] * LM.num_layers + [others] * 2 * LM.num_layers
    assert found == [("all-gather", "s32", examples * LM.n_q), *sums]


def test_a_batch_alone_exchanges_nothing(single, decoded):
    sampled = make(TEXT, 8).generate(TEXTS, seed=3, **SHORT)
    np.testing.assert_array_equal(sampled.codes, single.sampled.codes)
    args, static = decoded.calls[0]
    assert not _EXCHANGE.findall(decoded.real.lower(*args, **static).compile().as_text())


def test_one_compilation_serves_a_bucket():
    model = make(TEXT, 4, 2)
    jitted = (program._advance, program._start)
    for _ in range(2):  # jax 0.10 may count a program twice that it has compiled once
        model.generate(TEXTS, **SHORT)
    before = [f._cache_size() for f in jitted]
    # Three calls of the loop, other texts, another batch that is filled up to the same size.
    calls = []
    model.generate(TEXTS[:2], duration=0.4, seed=2, progress=lambda *call: calls.append(call))
    assert len(calls) > 2
    assert [f._cache_size() for f in jitted] == before


# --- Bad input ------------------------------------------------------------------------------------


def test_too_few_devices_is_one_clear_error():
    with pytest.raises(UserError, match=r"^4 x 4 devices requested, but jax finds 8 \(cpu\)$"):
        sharding.make_mesh(data=4, model=4)
    with pytest.raises(UserError, match="model must be a positive number of devices, got 0"):
        sharding.make_mesh(model=0)


@pytest.mark.parametrize(("devices", "shape"), [("8", (8, 1)), ("4x2", (4, 2))])
def test_generate_takes_devices(monkeypatch, capsys, devices, shape):
    meshes = []

    def load(name, *, dtype=None, cache_dtype=None, adapters=None, mesh=None):
        meshes.append(mesh)
        raise UserError("enough")

    monkeypatch.setattr(MusicGen, "from_pretrained", load)
    assert main(["generate", "bells", "--devices", devices]) == 2
    assert capsys.readouterr().err.endswith("enough\n")
    assert meshes == [sharding.make_mesh(data=shape[0], model=shape[1])]
