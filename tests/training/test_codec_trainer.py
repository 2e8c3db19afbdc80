"""Training of whole codecs: what moves and what does not, resuming, the command."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from musicgen_jax import audio
from musicgen_jax.codec import Codec
from musicgen_jax.commands.cli import main
from musicgen_jax.config import EncodecConfig, toml
from musicgen_jax.errors import UserError
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.runtime import sharding
from musicgen_jax.training import codec, codec_run, codec_settings
from musicgen_jax.training.codec_config import CodecTrainConfig, LossWeights
from musicgen_jax.training.discriminator import DiscriminatorConfig
from tests.helpers.tolerance import assert_close

# One block and few convolutions: the layers have tests of their own, and this file compiles a dozen
# training steps.
MODEL = EncodecConfig(
    sample_rate=8000, channels=2, n_filters=2, ratios=(16,), dimension=4, n_q=3, bins=8, lstm=0
)
CONFIG = CodecTrainConfig(
    steps=6,
    batch_size=2,
    segment_frames=8,
    losses=LossWeights(adv=4.0, feat=4.0, l1=0.1, msspec=0.0),
    discriminator=DiscriminatorConfig(
        filters=2, n_ffts=(64,), hop_lengths=(16,), win_lengths=(64,), dilations=(1,)
    ),
    adversarial_every=2,
    unquantized_steps=2,
    q_dropout=True,
    kmeans_rounds=3,
)


def clips(seconds=0.1):
    time = np.arange(int(seconds * 8000)) / 8000
    mono = [0.3 * np.sin(2 * np.pi * f * time) for f in (250, 500, 750)]
    return np.stack([[wave, -0.5 * wave] for wave in mono])


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


@pytest.fixture(scope="module", autouse=True)
def steps_are_traced_once():
    """Runs with the same settings take the same step; tracing it costs seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "make_step", functools.cache(codec.make_step))
        yield


@pytest.fixture(scope="module")
def whole():
    """Logs, states saved on the way, and the final state of one run."""
    saved, logs = {}, []
    state = codec.train(
        MODEL,
        CONFIG,
        clips(),
        log=logs.append,
        save=lambda state, score: saved.update({int(state.step): jax.device_get(state)}),
        every=3,
        save_every=3,
    )
    # Each kind of step once: with or without codebooks, with or without a lesson for the adversary.
    assert codec.make_step(MODEL, CONFIG)._cache_size() == 4
    return logs, saved, state


def test_all_parts_of_a_new_codec_learn(whole):
    logs, _, state = whole
    assert [record["step"] for record in logs] == [3, 6]
    names = {"loss", "d_loss", "adv", "feat", "l1", "ratio_adv", "penalty", "perplexity_2"}
    assert names <= logs[1].keys()
    assert all(np.isfinite(value) for record in logs for value in record.values())
    began = codec.init(MODEL, CONFIG)
    for name in ("nets", "codebooks", "adversary"):
        assert not np.array_equal(flat(getattr(began, name)), flat(getattr(state, name))), name
    averaged = codec.codec_params(state)
    last = codec.codec_params(dataclasses.replace(state, average=None))
    assert not np.array_equal(flat(averaged), flat(last))


def test_a_codec_run_that_goes_on_equals_an_uninterrupted_one(whole):
    logs, saved, state = whole
    again, state_of_3 = [], jax.device_put(saved[3])  # the programs are those for arrays of JAX
    later = codec.train(
        MODEL, CONFIG, clips(), state=state_of_3, log=again.append, every=3, save_every=3
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(later))
    assert {**again[0], "seconds": 0} == {**logs[1], "seconds": 0}


@pytest.mark.slow
def test_a_batch_may_be_spread_over_devices(whole):
    _, _, state = whole
    mesh = sharding.make_mesh(data=2)
    spread = codec.train(MODEL, CONFIG, clips(), mesh=mesh)
    assert_close(flat(spread.nets), flat(state.nets), relative=1e-3)


@pytest.mark.parametrize(("muon", "lstm"), [(False, 0), (True, 1)], ids=["Adam", "Muon"])
def test_only_the_decoder_learns(muon, lstm):
    model = dataclasses.replace(MODEL, lstm=lstm)
    config = dataclasses.replace(
        CONFIG, train_decoder_only=True, steps=40, learning_rate=3e-3, muon=muon
    )
    network = Encodec(model, rngs=nnx.Rngs(5))
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    held_out = clips()[:, :, :640].astype(np.float32)
    logs = []
    state = codec.train(model, config, clips(), params=params, log=logs.append, every=40)
    after = codec.codec_params(state)
    for name in ("encoder", "quantizer"):  # to the bit: codes keep their meaning
        jax.tree.map(np.testing.assert_array_equal, after[name], params[name])
    before, better = (codec.evaluate(model, p, held_out) for p in (params, after))
    assert better["l1"] < 0.9 * before["l1"]
    assert better["usage_0"] == before["usage_0"]
    assert state.adversary is not None


def test_the_adversary_may_have_a_head_start():
    config = dataclasses.replace(CONFIG, unquantized_steps=0, adversarial_warmup=2, steps=3)
    states, logs = {}, []
    codec.train(
        MODEL,
        config,
        clips(),
        log=logs.append,
        save=lambda state, score: states.update({int(state.step): jax.device_get(state)}),
        save_every=1,
    )
    began = codec.init(MODEL, config)
    np.testing.assert_array_equal(flat(states[2].nets), flat(began.nets))
    assert not np.array_equal(flat(states[2].adversary), flat(states[1].adversary))
    assert not np.array_equal(flat(states[3].nets), flat(began.nets))
    assert [set(record) == {"step", "seconds", "d_loss"} for record in logs] == [True, True, False]


class Failing:
    """Sound, until so many segments have been drawn."""

    def __init__(self, until):
        self.left = until

    def segment(self, rng, samples):
        self.left -= 1
        return np.full((2, samples), 0.1 if self.left >= 0 else np.nan, np.float32)


def test_training_that_diverges_stops_before_it_saves():
    saved, logs = [], []
    with pytest.raises(UserError, match="by step 4"):
        codec.train(
            MODEL,
            dataclasses.replace(CONFIG, unquantized_steps=5),
            Failing(6),
            log=logs.append,
            save=lambda state, score: saved.append(int(state.step)),
            every=2,
            save_every=2,
        )
    assert saved == [2]


def test_segments_must_fit():
    with pytest.raises(UserError, match="do not fit in clips"):
        codec.train(MODEL, CONFIG, clips(0.01))
    short = dataclasses.replace(CONFIG, losses=LossWeights())
    with pytest.raises(UserError, match="segment_frames >= 64"):
        codec.train(MODEL, short, clips())
    alone = dataclasses.replace(CONFIG, train_decoder_only=True)
    with pytest.raises(UserError, match="needs a codec"):
        codec.train(MODEL, alone, clips())


# --- The command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Music, settings, and a finished run."""
    path = tmp_path_factory.mktemp("codec")
    (path / "music").mkdir()
    for i, clip in enumerate(clips(1.0)):
        audio.write(path / "music" / f"{i}.wav", clip.astype(np.float32), 8000)
    run = codec_settings.CodecRunConfig(
        codec=dataclasses.replace(MODEL, channels=1, n_q=2),
        training=dataclasses.replace(CONFIG, segment_frames=64, unquantized_steps=0),
        name="mine",
        valid_clips=2,
        valid_seconds=0.2,
        log_every=3,
        save_every=3,
    )
    (path / "settings.toml").write_text(toml.dump(run))
    assert train(path, "run", "--valid", str(path / "music")) == 0
    return path


def train(path, run, *more, config="settings.toml"):
    arguments = [str(path / config)] if config else []
    data = ["--data", str(path / "music"), "--run", str(path / run)]
    return main(["train", "codec", *arguments, *data, *more])


def figures(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def test_the_command_makes_a_codec(folder):
    made = Codec.from_pretrained(folder / "run" / "codec")
    encoded = made.encode(clips(0.5)[0], 8000)
    assert encoded.codes.shape == (1, 2, 250)
    assert made.decode(encoded).shape == (1, 1, 4000)
    assert "valid si_snr" in figures(folder / "run")[-1]
    assert (folder / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_stopped_command_goes_on_to_the_same_codec(folder, monkeypatch):
    save = codec_run.Run.save

    def stop(self, step, *rest, **options):
        save(self, step, *rest, **options)
        raise KeyboardInterrupt

    valid = "--valid", str(folder / "music")
    with monkeypatch.context() as patch:
        patch.setattr(codec_run.Run, "save", stop)
        assert train(folder, "stopped", *valid) == 130
    assert not (folder / "stopped" / "codec").exists()
    assert train(folder, "stopped", *valid, "--resume", config=None) == 0
    assert figures(folder / "stopped") == figures(folder / "run")
    ours, theirs = (Codec.from_pretrained(folder / r / "codec") for r in ("stopped", "run"))
    states = (nnx.to_pure_dict(nnx.state(each.encodec)) for each in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_the_command_trains_a_decoder_for_codes_that_there_are(folder):
    config = codec_settings.CodecRunConfig(
        training=dataclasses.replace(CONFIG, segment_frames=64, steps=2, train_decoder_only=True),
        base=str(folder / "run" / "codec"),
    )
    (folder / "decoder.toml").write_text(toml.dump(config))
    assert train(folder, "decoder", config="decoder.toml") == 0
    ours, base = (Codec.from_pretrained(folder / r / "codec") for r in ("decoder", "run"))
    assert ours.fingerprint == base.fingerprint
    sound = clips(0.5)[0]
    np.testing.assert_array_equal(ours.encode(sound, 8000).codes, base.encode(sound, 8000).codes)
    assert "Its training began with" in (folder / "decoder" / "codec" / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[codec]\nratios = []", "codec.ratios must have from 1 to 16 items, got 0"),
        ("[training.losses]\nadv = -1.0", "adv must not be negative"),
        ("[training]\nadversarial_loss = 'wgan'", "must be 'hinge', 'hinge2' or 'mse'"),
        ("[training]\nsteps = 5\nwarmup_steps = 5", "warmup_steps must be from 0 to below steps"),
        ("[training]\nadversarial_warmup = 400000", "must be from 0 to below steps without"),
        ("[training.discriminator]\nn_ffts = [64]", "must pair up"),
        ("[training]\ntrain_decoder_only = true", "needs a base"),
        ("[training]\nlearnin_rate = 1.0", "did you mean learning_rate"),
    ],
)
def test_bad_settings_are_one_line(folder, tmp_path, capsys, text, message):
    (tmp_path / "bad.toml").write_text(text)
    assert main(["train", "codec", str(tmp_path / "bad.toml"), "--run", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_bad_arguments_are_one_line(folder, tmp_path, capsys):
    run = ["--run", str(tmp_path / "x")]
    for arguments, message in (
        (["debug", *run], "give --data AUDIO"),
        (run, "give a CONFIG"),
        (["debug", *run, "--steps", "0"], "steps must be at least 1"),
        (["debug", *run, "--data", str(folder / "none")], "none"),
        (["debug", *run, "--data", str(folder / "music"), "--devices", "3"], "equal parts"),
        (["debug", *run, "--base", str(folder / "none"), "--data", "x"], "none"),
    ):
        assert main(["train", "codec", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
    assert not (tmp_path / "x").exists()
    assert train(folder, "run") == 2
    assert "--resume" in capsys.readouterr().err


def test_presets_are_what_a_file_would_give():
    for preset in codec_settings.PRESETS.values():
        assert codec_settings.with_steps(preset.training, 1).steps == 1
        text = toml.dump(preset)
        assert toml.parse(text, codec_settings.CodecRunConfig) == preset
