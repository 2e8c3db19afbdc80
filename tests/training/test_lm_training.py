"""The language model's training: every way to compute a step gives the same step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musicgen_jax import testing
from musicgen_jax.config import EncodecConfig, LMConfig, MusicGenConfig, T5Config
from musicgen_jax.errors import UserError
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.lm import compute_predictions
from musicgen_jax.training import batches, ema, lm, lm_loop
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.batches import Dropout
from musicgen_jax.training.layout import Layout, MeshConfig
from musicgen_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from tests.helpers import lm_runs
from tests.helpers.several_processes import run_together
from tests.helpers.tolerance import assert_close

CODEC = EncodecConfig(
    sample_rate=8000, n_filters=2, ratios=(4, 4), dimension=4, n_q=2, bins=8, lstm=0
)
MODEL = MusicGenConfig(
    t5=T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2),
    lm=LMConfig(dim=16, num_heads=2, num_layers=1, n_q=2, card=8, delays=(0, 1), text_dim=8),
    encodec=CODEC,
)
MELODY = dataclasses.replace(
    MODEL,
    lm=dataclasses.replace(MODEL.lm, conditioning="prepend", chroma_bins=3),
)
TRAINING = lm.LMTrainConfig(
    phases=(lm.Phase(3, 6, 8),),
    optimizer=OptimizerConfig(warmup_steps=1, muon=False),
    dropout=Dropout(0.3),
    ema_decay=0.9,
)


class Random:
    """Codes and prompts without a pattern; melodies of five frames, some of them missing."""

    def segment(self, rng, frames):
        return rng.integers(8, size=(2, frames)), "x" * int(rng.integers(5))

    def segment_with_chroma(self, rng, frames):
        chroma = np.eye(3, dtype=np.float32)[rng.integers(3, size=5)]
        return *self.segment(rng, frames), chroma if rng.random() < 0.7 else None


def tokenize(texts):
    ids = np.zeros((len(texts), 4), np.int32)
    mask = np.zeros((len(texts), 4), bool)
    for row, prompt in enumerate(texts):
        ids[row, : len(prompt or "")] = 5
        mask[row, : len(prompt or "")] = True
    return ids, mask


def train(model=MODEL, mesh=None, **changes):
    """Records and the final state of three steps."""
    config = dataclasses.replace(TRAINING, **changes)
    layout = Layout(mesh.make(), mesh.fsdp) if mesh else lm.ONE_DEVICE
    logs = []
    state = lm_loop.train(
        model, config, Random(), tokenize, layout=layout, log=logs.append, every=1
    )
    return logs, state


@pytest.fixture(scope="module")
def alone():
    return train()


def check_same(run, alone):
    (logs, state), (expected_logs, expected) = run, alone
    for ours, theirs in zip(logs, expected_logs, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 1e-5
        assert abs(ours["grad_norm"] / theirs["grad_norm"] - 1) < 1e-4
    for part in ("params", "ema"):
        jax.tree.map(
            # Adam divides by how large a gradient was: where it is nothing but rounding, so are
            # its first steps.
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
            *(jax.device_get(getattr(s, part)) for s in (state, expected)),
        )


class Counted(Random):
    """Codes that say nothing; of every frame which half it is in, and what nobody knows."""

    def segment_with_labels(self, rng, frames):
        labels = np.stack([np.arange(frames) * 2 // frames, np.full(frames, -1)])
        return *self.segment(rng, frames), labels


def test_only_the_named_parameters_are_trained():
    before = lm.init(MODEL, TRAINING).params["lm"]
    _, state = train(train_only=r"self_attn|out_norm")
    after = dict(jax.tree_util.tree_leaves_with_path(state.params["lm"]))
    changed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(before)
        if (np.asarray(leaf) != np.asarray(after[path])).any()
    }
    attention = "transformer.layers.0.self_attn"
    assert changed == {
        f"{attention}.in_proj.weight",
        f"{attention}.out_proj.weight",
        "out_norm.scale",
        "out_norm.bias",
    }


def test_labels_are_learnt_beside_the_codes():
    config = dataclasses.replace(
        TRAINING,
        phases=(lm.Phase(40, 6, 8),),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=1, muon=False),
        label_classes=(2, 3),
        ema_decay=0.0,
    )
    logs = []
    state = lm_loop.train(MODEL, config, Counted(), tokenize, log=logs.append, every=1)
    beside = [record["loss"] - (record["ce_q1"] + record["ce_q2"]) / 2 for record in logs]
    # Of two kinds one is never known: half of its weight times log 2 is where it begins.
    assert abs(beside[0] - 0.25 * np.log(2)) < 1e-3
    assert beside[-1] < 0.05
    assert state.params["labels"].shape == (16, 5)
    np.testing.assert_array_equal(state.params["labels"][:, 2:], 0)
    with pytest.raises(ValueError, match="label_classes"):
        dataclasses.replace(config, label_classes=(1,))


def test_parts_of_a_batch_and_computing_blocks_twice_change_nothing(alone):
    check_same(train(accumulate=4, remat=True), alone)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=2, model=2, fsdp=True),
        pytest.param(MeshConfig(data=8), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=8, fsdp=True), marks=pytest.mark.slow),
        pytest.param(MeshConfig(model=2), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=4, model=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_many_devices_take_the_step_of_one(mesh, alone):
    check_same(train(mesh=mesh), alone)


@pytest.mark.slow
def test_many_devices_with_everything_at_once(alone):
    mesh = MeshConfig(data=4, model=2, fsdp=True)
    check_same(train(mesh=mesh, accumulate=2, remat=True), alone)


def test_every_device_keeps_its_part_alone():
    mesh = MeshConfig(data=4, model=2, fsdp=True)
    layout = Layout(mesh.make(), fsdp=True)
    state = lm.init(MODEL, TRAINING, layout=layout)
    held = whole = 0
    for leaf in jax.tree.leaves((state.params["lm"], state.optimizer, state.ema)):
        if leaf.ndim > 1:
            held += leaf.addressable_shards[0].data.nbytes
            whole += leaf.nbytes
    assert held < 0.2 * whole  # an eighth, but for odd tables of embeddings
    shapes = jax.tree.map(lambda leaf: leaf.shape, state)
    alone = jax.tree.map(lambda leaf: leaf.shape, lm.abstract_state(MODEL, TRAINING))
    assert jax.tree.leaves(shapes) == jax.tree.leaves(alone)


def test_bfloat16_computes_nearly_the_same_and_keeps_float32(alone):
    params = jax.device_get(lm.init(MODEL, TRAINING).params)
    (_, batch), *_ = lm_loop.batches(Random(), tokenize, TRAINING, 0)
    rounded = jax.jit(jax.value_and_grad(lm.make_loss(MODEL, dtype=jnp.bfloat16), has_aux=True))
    (loss, _), gradient = rounded(params, batch)
    assert 0 < abs(loss - alone[0][0]["loss"]) < 0.02
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}


def test_codebooks_weigh_as_asked(alone):
    params = alone[1].params
    (_, batch), *_ = lm_loop.batches(Random(), tokenize, TRAINING, 0)
    mean, per_codebook = jax.jit(lm.make_loss(MODEL, (3.0, 1.0)))(params, batch)
    assert_close(mean, (3 * per_codebook[0] + per_codebook[1]) / 4)
    with pytest.raises(UserError, match="must be 2 numbers"):
        lm.make_loss(MODEL, (1.0, 1.0, 1.0))


def test_the_loss_is_that_of_the_model_as_it_generates():
    """Log-probabilities by `MusicGen` against the training loss."""
    model = testing.random_model(testing.DEBUG)
    codes = np.random.default_rng(0).integers(37, size=(2, 4, 9)).astype(np.int32)
    texts = ["calm piano", None]
    ids, mask = model.tokenizer(texts)
    loss = jax.jit(lm.make_loss(testing.DEBUG))
    mean, per_codebook = loss(testing.model_params(model), Batch(codes, ids, mask))
    condition = model.text_condition(texts)
    logits = np.asarray(jax.jit(compute_predictions)(model.lm, codes, condition)[0])
    expected = []
    for k, delay in enumerate(testing.DEBUG.lm.delays):
        valid = slice(0, 9 - delay)
        log_probs = jax.nn.log_softmax(logits[:, k, valid], axis=-1)
        picked = np.take_along_axis(np.asarray(log_probs), codes[:, k, valid, None], -1)
        expected.append(-picked.mean())
    assert_close(per_codebook, expected)
    assert_close(mean, np.mean(expected))


def test_a_melody_model_hears_melodies_and_their_absence():
    params = lm.init(MELODY, TRAINING).params
    gradient = jax.jit(jax.value_and_grad(lm.make_loss(MELODY), has_aux=True))
    (_, batch), *_ = lm_loop.batches(Random(), tokenize, TRAINING, 0, chroma_shape=(5, 3))
    chroma, given = batch.chroma, batch.has_audio
    assert given.any()
    assert not given.all()

    def loss(melodies):
        return float(gradient(params, dataclasses.replace(batch, chroma=melodies))[0][0])

    grads = gradient(params, batch)[1]["lm"]
    for name in ("weight", "bias"):
        assert np.abs(grads["chroma_conditioner"]["output_proj"][name]).max() > 0
    other = np.where(given[:, None, None], chroma, np.eye(3, dtype=np.float32)[0])
    assert loss(other) == loss(chroma)  # where there is none, nobody listens
    assert abs(loss(np.roll(chroma, 1, axis=-1)) - loss(chroma)) > 1e-6


def test_conditions_are_left_out_as_often_as_asked():
    dropout = Dropout(everything=0.3, description=0.2, self_wav=0.5)
    examples = Random()
    examples.segment = lambda rng, frames: (np.zeros((2, frames)), "abc")
    batch = batches.draw(examples, tokenize, dropout, (0, 0), range(2000), 3, chroma_shape=(5, 3))
    text, given = batch.mask.any(1), batch.has_audio
    assert abs(text.mean() - 0.7 * 0.8) < 0.05
    assert abs(given.mean() - 0.7 * 0.5 * 0.7) < 0.05
    assert abs((~text & ~given).mean() - (0.3 + 0.7 * 0.2 * (1 - 0.35))) < 0.05
    with pytest.raises(ValueError, match="everything must be from 0 to 1"):
        Dropout(1.5)


def test_rows_do_not_depend_on_who_draws_them():
    def make(rows):
        return batches.draw(Random(), tokenize, Dropout(0.3), (3, 5), rows, 4)

    whole = make(range(8))
    parts = [make(range(0, 3)), make(range(3, 8))]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, joined)
    placed = batches.place(make, 8, MeshConfig(data=4, model=2).make())
    jax.tree.map(np.testing.assert_array_equal, whole, placed)
    with pytest.raises(UserError, match="8 examples at a time cannot be split into 3"):
        Layout(MeshConfig(data=3).make()).check_batch(8)


def test_a_batch_that_cannot_be_drawn_is_an_error_and_not_the_end():
    class Broken(Random):
        def segment(self, rng, frames):
            raise UserError("the shard is broken")

    with pytest.raises(UserError, match="shard is broken"):
        lm_loop.train(MODEL, TRAINING, Broken(), tokenize)


def test_the_average_begins_with_the_first_parameters_and_remembers():
    average = ema.start({"x": jnp.asarray(7.0)})
    values, decay = [1.0, 5.0, 2.0], 0.8
    for value in values:
        average = ema.update(average, {"x": jnp.asarray(value)}, decay)
    weights = [decay**2, decay, 1.0]
    assert_close(average.params["x"], np.dot(values, weights) / sum(weights))
    same = ema.update(average, {"x": jnp.asarray(100.0)}, decay, jnp.asarray(False))
    assert_close(same.params["x"], average.params["x"])
    assert float(same.count) == float(average.count)


def test_the_learning_rate_is_audiocrafts():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4, final_learning_rate=0.1)
    schedule = make_schedule(config, 20)
    for step in range(21):
        cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * (step - 4) / 16))
        expected = step / 4 if step < 4 else cosine
        assert_close(schedule(step), 0.5 * expected)


def test_adamw_takes_its_settings():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, beta1=0.5, beta2=0.7, eps=0.3, weight_decay=0.2,
        clip_norm=0.0, muon=False, final_learning_rate=1.0,
    )  # fmt: skip
    optimizer = make_optimizer(config, 10)
    params = {"x": jnp.asarray([2.0, -1.0])}
    grads = {"x": jnp.asarray([30.0, -0.5])}
    state, mu, nu = optimizer.init(params), 0.0, 0.0
    for step in (1, 2):
        updates, state = optimizer.update(grads, state, params)
        mu, nu = 0.5 * mu + 0.5 * grads["x"], 0.7 * nu + 0.3 * grads["x"] ** 2
        adam = (mu / (1 - 0.5**step)) / (jnp.sqrt(nu / (1 - 0.7**step)) + 0.3)
        expected = -0.1 * (adam + 0.2 * params["x"])
        assert_close(updates["x"], expected)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 3}, "a batch of 8 cannot be split into 3"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16"),
        ({"ema_decay": 1.0}, "ema_decay must be from 0"),
        ({"phases": ()}, "phases must have at least one"),
        ({"codebook_weights": (0.0, 0.0)}, "nor all 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRAINING, **settings)


# --- Several processes --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_processes_train_together_as_one_alone(count, devices, tmp_path):
    testing.save_random_model(tmp_path / "base", lm_runs.BASE)

    def command(address: str, i: int) -> list[str]:
        words = ["-m", "tests.helpers.lm_runs", str(tmp_path / "run"), str(tmp_path / "base")]
        return [*words, "--steps", "6", "--processes", address, str(count), str(i)]

    ended = run_together(command, tmp_path, count=count, devices=devices)
    assert [code for code, _ in ended] == [0] * count, ended
    config = dataclasses.replace(lm_runs.shorter(6), **lm_runs.SAMPLES)
    lm_runs.train(tmp_path / "alone", tmp_path / "base", config)
    together, alone = (lm_runs.records(tmp_path / name) for name in ("run", "alone"))
    assert [r["step"] for r in together] == [r["step"] for r in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 1e-5
    samples = [{f.name for f in (tmp_path / r / "samples").iterdir()} for r in ("run", "alone")]
    assert samples[0] == samples[1]
    assert {"step-00000003-0.wav", "step-00000006-1.wav"} <= samples[0]
    model = MusicGen.from_pretrained(tmp_path / "run" / "model")
    assert model.generate(["abc"], duration=0.1).codes.shape == (1, 4, 5)
    # One process goes on with what several have saved.
    lm_runs.train(tmp_path / "run", tmp_path / "base", lm_runs.shorter(8), resume=True)
    assert lm_runs.records(tmp_path / "run")[-1]["step"] == 8
