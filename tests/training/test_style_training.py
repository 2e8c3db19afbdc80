"""Style models on one's own audio: styles of excerpts, segments with one of them, fine-tuning."""

import dataclasses
import itertools
import json
import os
import shutil

import jax
import numpy as np
import pytest
import soundfile

from musicgen_jax import MusicGen, UserError, audio, testing
from musicgen_jax.commands import cli
from musicgen_jax.conditioning.style import mert_features
from musicgen_jax.convert import convert, export_torch
from musicgen_jax.convert.style import inverse_deviation
from musicgen_jax.nano.render import render
from musicgen_jax.nn.lm import compute_predictions
from musicgen_jax.nn.style_conditioner import StyleConditioner
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.loading import load_style_conditioner
from musicgen_jax.training import finetune, lm, lm_loop
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.batches import STYLE_DROPOUT, Dropout, draw, fixed_length
from musicgen_jax.training.data import encode as encoding
from musicgen_jax.training.data.encode import encode
from musicgen_jax.training.data.metadata import MusicInfo
from musicgen_jax.training.data.shard_writer import ShardWriter
from musicgen_jax.training.data.shards import CodeClip, CodeShards
from musicgen_jax.training.data.sources import Skipped
from musicgen_jax.training.layout import Layout, MeshConfig
from musicgen_jax.training.lm_settings import PRESETS, model_config
from musicgen_jax.training.optimizer import OptimizerConfig
from tests.helpers import shallow
from tests.helpers.damaged_shards import complaint
from tests.helpers.lm_runs import records
from tests.helpers.tolerance import assert_close

# Windows of 5 s, at 50 frames a second; a style conditioner that audiocraft has a name for.
CONFIG = dataclasses.replace(
    shallow.STYLE,
    lm=dataclasses.replace(
        shallow.STYLE.lm,
        style=dataclasses.replace(shallow.STYLE.lm.style, dim=16, num_heads=8, ffn_dim=64),
    ),
    max_duration=5.0,
    name="small-style",
)
RATE, HOP = CONFIG.sample_rate, CONFIG.encodec.hop_length
BOOKS = CONFIG.lm.style.n_q
EXCERPT = 1.0
LENGTH = STRIDE = 50  # frames


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small style model, three pieces and a note that is shorter than an excerpt, their codes."""
    home = tmp_path_factory.mktemp("style")
    save_model(home / "model")
    testing.save_random_model(home / "text-model", shallow.TEXT)
    render(home / "music", 3, 6.0)
    note = np.sin(np.arange(2400) / 5).astype(np.float32)
    soundfile.write(home / "music/note.wav", 0.3 * note, RATE)
    encode(home / "music", home / "codes", home / "model", excerpt_length=EXCERPT)
    return home


@pytest.fixture(scope="module")
def model(home):
    return MusicGen.from_pretrained(home / "model", dtype="float32")


def save_model(folder, seed=0) -> None:
    """A random model that audiocraft's format can hold: its batch norm is of some variance."""
    parts, other = (testing.model_params(testing.random_model(CONFIG, seed=s)) for s in (seed, 0))
    batch_norm = parts["lm"]["style_conditioner"]["batch_norm"]
    variance = np.random.default_rng(seed).uniform(0.1, 2.0, batch_norm["scale"].shape)
    batch_norm["scale"] = inverse_deviation(variance.astype(np.float32))
    checkpoint.save_model(
        folder,
        CONFIG,
        parts | {"encodec": other["encodec"]},
        tokenizer=testing.character_tokenizer(),
        license="Random numbers: nobody's.",
        source={"random seed": seed},
    )


def song(home, path) -> np.ndarray:
    """A clip as the model hears it, [1, W]."""
    return audio.convert_audio(*audio.read(home / "music" / path), RATE, 1)


# --- What is heard -------------------------------------------------------------------------------


def test_styles_are_those_of_the_excerpts_alone(home, model):
    """One every second, from MERT and the conditioner that music is generated with."""
    shards = CodeShards.open(home / "codes")
    stored = np.load(home / "codes/style-00000.npy")
    assert stored.dtype == np.uint16
    assert [clip.frames for clip in shards.clips] == [300, 300, 300, 30]
    conditioner = jax.jit(StyleConditioner.encode, static_argnums=2)
    expected = []
    for clip in shards.clips[:3]:
        wav = song(home, clip.path)
        for second in range(6):
            excerpt = wav[:, second * RATE :][:, : int(EXCERPT * RATE)]
            features = mert_features(model.mert, excerpt, sample_rate=RATE)
            expected.append(conditioner(model.lm.style_conditioner, features, BOOKS)[0])
    np.testing.assert_array_equal(stored, np.stack(expected))
    assert len({style.tobytes() for style in stored}) > 10


def test_a_segment_has_the_style_of_an_excerpt_of_its_own(home):
    shards = CodeShards.open(home / "codes")
    stored = np.load(home / "codes/style-00000.npy").astype(np.int32)
    numbers = {clip.path: i for i, clip in enumerate(shards.clips)}
    without, drawn_of = 0, set()
    for seed in range(60):
        frames = 120
        whole = shards.sample(np.random.default_rng(seed), frames)
        codes, prompt, heard = shards.segment_with_style(np.random.default_rng(seed), frames)
        np.testing.assert_array_equal(codes, whole.codes)
        assert prompt == whole.prompt
        end = whole.start + whole.n_frames
        inside = [
            6 * numbers[whole.path] + i
            for i in range(6)
            if whole.start <= STRIDE * i and STRIDE * i + LENGTH <= end
        ]
        if heard is None:
            assert not inside
            without += 1
            continue
        style, where = heard
        begins = whole.start + where.start
        assert where.stop - where.start == LENGTH
        assert begins % STRIDE == 0
        number = 6 * numbers[whole.path] + begins // STRIDE
        assert number in inside
        np.testing.assert_array_equal(stored[number], style)
        drawn_of.add(number)
    assert 0 < without < 40
    assert len(drawn_of) > 10


def test_books_and_conditions_are_drawn(home):
    """From one book to all, the others -1; text and style are left out as audiocraft does it."""
    assert Dropout(everything=0.1, description=0.4, self_wav=0.4) == STYLE_DROPOUT
    config = finetune.make_config(str(home / "model"), "x", codes="y")
    assert config.train.dropout == STYLE_DROPOUT
    shards = CodeShards.open(home / "codes")
    rows = draw(shards, tokenize, STYLE_DROPOUT, (0, 0), range(400), 99, styled=True)
    style, given = rows.style, rows.has_audio
    assert rows.codes.shape == (400, 4, 99)
    assert (style.shape, style.dtype) == ((400, *shards.style_shape), np.int32)
    used = (style >= 0).all(axis=2).sum(axis=1)
    assert ((style < 0).all(axis=2).sum(axis=1) == BOOKS - used).all()
    assert (used[~given] == 0).all()
    assert rows.counted.shape == (400, 99)
    assert rows.counted[~given].all()
    assert ((~rows.counted[given]).sum(axis=1) == LENGTH).all()
    counts = np.bincount(used[given], minlength=BOOKS + 1)
    assert counts[0] == 0
    assert min(counts[1:]) > given.sum() / BOOKS / 2
    # Of four clips one is too short for a style, and some segments run out before an excerpt ends.
    assert 0.9 * 0.6 * 0.5 < given.mean() < 0.9 * 0.6 * 0.85
    assert 0.9 * 0.6 * 0.6 < rows.mask.any(axis=1).mean() < 0.9 * 0.6 * 1.1
    again = draw(shards, tokenize, STYLE_DROPOUT, (0, 0), range(7, 9), 99, styled=True)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(lambda part: part[7:9], rows))


def tokenize(texts):
    mask = np.array([[bool(text)] * 2 for text in texts])
    return np.ones((len(texts), 2), np.int32), mask


def test_a_text_model_does_not_hear_the_styles_that_are_there(home, tmp_path):
    encode(home / "music", tmp_path / "codes", home / "text-model")
    assert not [*(tmp_path / "codes").glob("style*")]
    drawn = [
        draw(CodeShards.open(folder), tokenize, Dropout(0.2), (0, 0), range(8), 99)
        for folder in (home / "codes", tmp_path / "codes")
    ]
    assert drawn[0].style is drawn[0].has_audio is drawn[0].counted is None
    for name in ("ids", "mask"):
        np.testing.assert_array_equal(*(getattr(rows, name) for rows in drawn))


def test_an_encoding_that_was_cut_off_goes_on_with_the_same_styles(home, tmp_path, monkeypatch):
    """Killed before some of the files that it writes, one clip a shard."""
    loaded = encoding.load_codec(home / "model")
    monkeypatch.setattr(encoding, "load_codec", lambda model: loaded)
    settings = {"excerpt_length": EXCERPT, "shard_mb": 1e-6}
    whole = encode(home / "music", tmp_path / "whole", "model", **settings)
    files = {file.name: file.read_bytes() for file in whole.folder.iterdir()}
    assert len([name for name in files if name.startswith("style")]) == 4
    together = np.concatenate([np.load(f) for f in sorted(whole.folder.glob("style*"))])
    np.testing.assert_array_equal(together, np.load(home / "codes/style-00000.npy"))
    assert len(np.load(whole.folder / "style-00003.npy")) == 0
    replace = os.replace
    for stop in (0, 2, 3, 5, len(files) - 1):
        out, left = tmp_path / f"killed {stop}", iter(range(stop))

        def dying(source, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            encode(home / "music", out, "model", **settings)
        monkeypatch.setattr(os, "replace", replace)
        assert encode(home / "music", out, "model", **settings).fingerprint == whole.fingerprint
        assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    with pytest.raises(UserError, match="was encoded with style_length 50, not 100"):
        encode(home / "music", out, "model", **settings | {"excerpt_length": 2.0})


# --- What is trained on --------------------------------------------------------------------------

TRAINING = lm.LMTrainConfig(
    phases=(lm.Phase(2, 20, 4),),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1, muon=False),
    dropout=Dropout(0.2),
)


@jax.jit
def logits_of(model, codes, condition):
    return compute_predictions(model, codes, model.fill_nulls(condition))


def test_the_loss_is_that_of_the_condition_music_is_generated_under(home, model):
    """For every number of books and for none, from the audio of the excerpt itself.

    The frames of the excerpt do not count.
    """
    stored = np.load(home / "codes/style-00000.npy").astype(np.int32)
    parts = testing.model_params(model)
    params = lm.init(CONFIG, TRAINING, parts["t5"], lm=parts["lm"]).params
    loss = jax.jit(lm.make_loss(CONFIG))
    codes = CodeShards.open(home / "codes").codes(1)[None, :, :30]
    ids, mask = fixed_length(model.tokenizer, 16)(["a song"])
    wav = song(home, "00001.wav")[:, 2 * RATE :][:, : int(EXCERPT * RATE)]
    losses = []
    elsewhere = (np.arange(30) < 7) | (np.arange(30) >= 19)
    for books in range(BOOKS + 1):
        style = np.where(np.arange(BOOKS)[:, None] < books, stored[6 + 2], -1)[None]
        given = np.array([books > 0])
        batch = Batch(codes, ids, mask, style=style, has_audio=given, counted=elsewhere[None])
        mean, each = loss(params, batch)
        settings = {"eval_q": max(1, books), "excerpt_length": EXCERPT}
        condition = model.style_condition(["a song"], [wav if books else None], RATE, **settings)
        logits, predicted = logits_of(model.lm, codes, condition)
        logs = np.asarray(jax.nn.log_softmax(logits))
        chosen = np.take_along_axis(logs, codes[..., None], -1)[..., 0]
        counted = np.asarray(predicted)[0] & elsewhere
        assert counted.sum() == 4 * 18 - 1 - 2 - 3
        expected = [-chosen[0, k, counted[k]].mean() for k in range(4)]
        assert_close(each, expected, 1e-5)
        assert_close(mean, np.mean(expected), 1e-5)
        losses.append(float(mean))
    apart = [abs(a - b) for a, b in itertools.combinations(losses, 2)]
    assert min(apart) > 1e-4, losses


def test_a_mesh_computes_the_same(home, model):
    """With everything that stays between steps cut over the devices, conditioner and all."""
    parts = jax.tree.map(np.array, testing.model_params(model))  # used up by a step
    shards = CodeShards.open(home / "codes")
    config = dataclasses.replace(TRAINING, phases=(lm.Phase(2, 100, 4),))
    made = []
    for mesh in (None, MeshConfig(data=2, model=2, fsdp=True)):
        layout = Layout(mesh.make(), mesh.fsdp) if mesh else lm.ONE_DEVICE
        state = lm.init(CONFIG, config, parts["t5"], lm=parts["lm"], layout=layout)
        logs = []
        settings = {"state": state, "layout": layout, "log": logs.append, "every": 1}
        state = lm_loop.train(CONFIG, config, shards, tokenize, **settings)
        made.append([logs[0]["loss"], logs[1]["loss"], *jax.tree.leaves(state.params["lm"])])
    for ours, theirs in zip(*made, strict=True):
        assert_close(ours, theirs, 1e-3)


def test_a_model_learns_what_only_the_style_tells(tmp_path):
    """The first code of a segment cannot be known from those before it: there are none."""
    writer = ShardWriter(tmp_path / "codes", made_up(), 1 << 20, lambda line: None)
    for number in range(11):
        clip = CodeClip(f"{number}.wav", 0, 40, 40, None, (1, 2), MusicInfo())
        style = np.full((10, BOOKS, 2), number, np.uint16)
        writer.add(clip, np.full((4, 40), 3 * number, np.int16), style=style)
    writer.finish([0] * 4, Skipped())
    examples = CodeShards.open(tmp_path / "codes")
    config = lm.LMTrainConfig(
        phases=(lm.Phase(160, 7, 16),),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5, muon=False),
        dropout=Dropout(0.0),
    )
    parts = testing.model_params(testing.random_model(CONFIG, std=0.5))
    state = lm.init(CONFIG, config, parts["t5"], lm=parts["lm"])
    state = lm_loop.train(CONFIG, config, examples, tokenize, state=state)
    last = dataclasses.replace(config, phases=(lm.Phase(1, 7, 16),), seed=1)
    (_, batch), *_ = lm_loop.batches(examples, tokenize, last, 0, styled=True)
    style, given = batch.style, batch.has_audio
    assert given.all()
    loss = jax.jit(lm.make_loss(CONFIG))

    def of(style, given):
        changed = dataclasses.replace(batch, style=style, has_audio=given)
        return float(loss(state.params, changed)[0])

    true, other, none = of(style, given), of(np.roll(style, 1, axis=0), given), of(style, ~given)
    assert true < 0.5
    assert other > true + 0.2
    assert none > true + 0.2


def made_up() -> dict:
    """Settings of shards whose codes and styles are made up: excerpts of 4 frames."""
    return {
        "format": "musicgen-jax code shards", "version": 1, "codec": "none", "fingerprint": "f",
        "sample_rate": 4000, "hop_length": 80, "audio_channels": 1, "codebooks": 4, "card": 37,
        "style_books": BOOKS, "style_bins": 11, "style_tokens": 2, "style_length": 4,
        "style_stride": 4, "style_conditioner": "f",
    }  # fmt: skip


# --- Whole runs, by the command line -------------------------------------------------------------


def params(folder):
    info = checkpoint.load_info(folder)
    loaded = MusicGen.from_pretrained(folder, dtype="float32")
    assert info.config is not None
    return testing.model_params(loaded)


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_finetuning_from_audio(home, tmp_path, capsys):
    """The loss falls, nothing that hears changes, and what was trained plays and is exported."""
    run = tmp_path / "run"
    command = ["finetune", str(home / "model"), str(home / "music"), "--run", str(run)]
    command += ["--steps", "15", "--batch-size", "4", "--accumulate", "2", "--log-every", "5"]
    assert cli.main([*command, "--learning-rate", "1e-2", "--seconds", "4"]) == 0
    out = capsys.readouterr().out
    assert "styles: of excerpts of 3 s, one every second" in out
    assert "1 of 4 clips are too short to have a style" in out
    losses = [record["loss"] for record in records(run)]
    assert losses[-1] < losses[0] - 0.5, losses
    before, after = params(home / "model"), params(run / "model")
    assert set(before) == {"t5", "mert", "lm", "encodec"}
    for name in ("t5", "mert", "encodec"):
        assert_same(before[name], after[name])
    assert_same(*(tree["lm"].pop("style_conditioner") for tree in (before, after)))
    change = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), before["lm"], after["lm"])
    assert min(jax.tree.leaves(change)) > 0
    made = MusicGen.from_pretrained(run / "model")
    clip, rate = audio.read(home / "music/00000.wav")
    settings = {"excerpt_length": EXCERPT, "duration": 0.2}
    assert made.generate_with_style(["a song"], clip, rate, **settings).codes.shape == (1, 4, 10)
    # The codes are good for what came of them, too.
    fingerprint = load_style_conditioner(run / "model", CONFIG.lm).rvq.fingerprint
    CodeShards.open(f"{run}-codes").require_styles(fingerprint, 250, "model")
    export_torch(run / "model", tmp_path / "theirs", format="audiocraft")
    convert(tmp_path / "theirs", tmp_path / "again", encodec_from=str(tmp_path / "theirs"))
    assert_same(params(run / "model"), params(tmp_path / "again"))


def test_an_adapter_of_a_style_model(home, model, tmp_path):
    """It learns, goes on where it was cut off, and plays."""
    arguments = {"codes": "", "lora": 2, "steps": 12, "batch_size": 4, "seconds": 3.0}
    config = finetune.make_config(
        str(home / "model"), str(home / "codes"), learning_rate=5e-2, save_every=6, log_every=3,
        **arguments,
    )  # fmt: skip
    whole = finetune.finetune(config, tmp_path / "whole")
    losses = [record["loss"] for record in records(tmp_path / "whole")]
    assert losses[-1] < losses[0] - 0.2, losses

    def stop(line):
        if line.startswith("step 9 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(config, tmp_path / "run", say=stop)
    made = finetune.finetune(config, tmp_path / "run", resume=True)
    assert made.read_bytes() == whole.read_bytes()
    adapted = MusicGen.from_pretrained(home / "model", adapters={"mine": made}).use_adapter("mine")
    assert_same(*(testing.model_params(m)["lm"]["style_conditioner"] for m in (adapted, model)))
    clip, rate = audio.read(home / "music/00000.wav")
    codes = [
        m.generate_with_style(["a song"], clip, rate, excerpt_length=EXCERPT, duration=0.5).codes
        for m in (model, adapted)
    ]
    assert np.any(codes[0] != codes[1])


# --- What breaks ---------------------------------------------------------------------------------


def test_data_that_does_not_fit_is_one_line(home, tmp_path, capsys):
    again = f"`musicgen-jax train encode DATA OUT --model {home / 'model'}"
    save_model(tmp_path / "other", seed=9)
    encode(home / "music", tmp_path / "text", home / "text-model")
    (tmp_path / "notes").mkdir()
    shutil.copy(home / "music/note.wav", tmp_path / "notes")
    encode(tmp_path / "notes", tmp_path / "short", home / "model", excerpt_length=EXCERPT)
    capsys.readouterr()
    style, codes = str(home / "model"), str(home / "codes")
    cases = [
        ([style, str(tmp_path / "text")], ["a style model needs styles", "holds none", again]),
        ([str(tmp_path / "other"), codes], ["styles of a different conditioner from that of"]),
        ([style, codes, "--seconds", "1.9"], ["give --seconds 2 or more", again]),
        ([style, str(tmp_path / "short")], ["every clip", "--excerpt-length S` with S below 1"]),
    ]
    for arguments, messages in cases:
        assert cli.main(["finetune", *arguments, "--run", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        for message in messages:
            assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("5.1", "excerpt_length must be more than 0 and at most 5"),
        ("0", "excerpt_length must be more than 0"),
        ("nan", "excerpt_length must be more than 0"),
        ("0.001", "too short for a single token"),
    ],
)
def test_excerpts_that_make_no_sense(home, tmp_path, capsys, length, message):
    command = ["train", "encode", str(home / "music"), str(tmp_path / "codes")]
    command += ["--model", str(home / "model"), "--excerpt-length", length]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_changed_in_the_styles_is_said(home, tmp_path):
    name = "style-00000.npy"

    def draw_many(folder) -> None:
        shards = CodeShards.open(folder)
        for seed in range(20):
            shards.segment_with_style(np.random.default_rng(seed), 250)

    def broken(change) -> str:
        return complaint(home / "codes", name, change, draw_many, tmp_path)

    assert "changed since" in broken(lambda data: data + b"0")
    assert "codes beyond 10" in broken(lambda data: data[:-400] + b"\x0b" * 400)
    assert "broken: encode again" in broken(lambda data: b"\x80" * len(data))
    assert "cannot read" in broken(lambda data: None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("style_books", 0),
        ("style_bins", 1 << 17),
        ("style_tokens", "6"),
        ("style_tokens", None),
        ("style_length", -1),
        ("style_stride", 0),
    ],
)
def test_a_hostile_index_of_styles_is_an_error_of_one_line(home, tmp_path, field, value):
    shutil.copytree(home / "codes", tmp_path / "hostile")
    index = json.loads((tmp_path / "hostile/index.json").read_text())
    index[field] = value
    (tmp_path / "hostile/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is broken") as caught:
        CodeShards.open(tmp_path / "hostile")
    assert "\n" not in str(caught.value)


def test_a_style_model_is_not_trained_from_nothing():
    with pytest.raises(UserError, match="start from a style model with `musicgen-jax finetune`"):
        lm.init(CONFIG, TRAINING)
    going_on = dataclasses.replace(PRESETS["debug"], continue_base=True)
    with pytest.raises(UserError, match="train a style model further, use `musicgen-jax finetune`"):
        model_config(going_on, CONFIG)
