"""LAION's file of the small CLAP in the goldens, and the files of a small tokenizer."""

import json

import numpy as np

from musicgen_jax.convert import clap
from musicgen_jax.convert.inverse import invert_table
from musicgen_jax.convert.pickled import Inert, Name
from musicgen_jax.convert.pipeline import convert_part
from musicgen_jax.convert.settings import Part
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.metrics.clap_audio import hann
from tests.goldens.make_goldens_clap import TEXT_DIM, weight
from tests.helpers.official_files import lazy
from tests.helpers.paths import GOLDENS
from tests.helpers.tokenizers import SENTENCES


def goldens():
    """What laion-clap computed."""
    return dict(np.load(GOLDENS / "metrics/clap.npz"))


def laion_state(text_dim=TEXT_DIM):
    """The network's tensors by laion-clap's names, with its constants.

    Args:
      text_dim: another width of the text tower makes other numbers than the goldens', sooner.
    """
    stored, state = goldens(), {}
    for line in stored["shapes"]:
        name, *sizes = line.split()
        shape = tuple(text_dim if size == str(TEXT_DIM) else int(size) for size in sizes)
        if name.endswith("melW"):
            state[name] = stored["melW"]
        elif "conv_real" in name:
            turns = np.outer(np.arange(513), np.arange(1024)) / 1024
            real = np.cos(2 * np.pi * turns) * hann()
            state[name] = real[:, None].astype(np.float32)
        elif "index" in name or "num_batches" in name or "position_ids" in name:
            state[name] = np.zeros(shape, np.int64)
        elif "extractor" in name or "attn_mask" in name:
            state[name] = np.zeros(shape, np.float32)
        else:
            state[name] = weight(name, shape)
    return state


def write_laion(path, state):
    """A checkpoint of LAION's trainer: wrapped names, and the optimizer's state next to them."""
    # The scheduler computes the learning rate with numpy, which torch pickles as it is.
    dtype = Inert("numpy.dtype", ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    number = Inert("_codecs.encode", ("\x00\x01", "latin1"))
    rate = Inert("numpy.core.multiarray.scalar", (dtype, number))
    moments = {i: {"step": 3, "exp_avg": np.ones((2, 2), np.float32)} for i in range(3)}
    groups = [{"lr": rate, "betas": (0.9, 0.99), "eps": 1e-8, "params": [0, 1, 2]}]
    checkpoint = {
        "epoch": 15,
        "name": "music",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": moments, "param_groups": groups},
        "scaler": {"scale": 65536.0, "kind": Name("numpy.dtype")},
    }
    write_torch(path, checkpoint)


def transformers_part():
    """The network in transformers' names, with the settings that matter."""
    tensors = {name: lazy(tensor) for name, tensor in laion_state(text_dim=64).items()}
    part = Part(clap.LAION, tensors, {}, "x")
    params = convert_part("clap", part, clap.derive_config(part))
    state = invert_table(clap.TABLES["transformers"], params, "x")
    settings = {
        "projection_hidden_act": "relu",
        "text_config/hidden_act": "gelu",
        "text_config/num_attention_heads": 1,
        "audio_config/window_size": 8,
        "audio_config/enable_fusion": False,
        "front end/truncation": "rand_trunc",
        "front end/frequency_min": 50,
    }
    return Part("transformers", {name: lazy(t) for name, t in state.items()}, settings, "x")


def write_tokenizer(folder, vocab_size=320):
    """Trains a byte-level BPE with RoBERTa's ids; writes vocab.json and merges.txt."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES * 20, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary = model["vocab"] | {"<mask>": len(model["vocab"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
