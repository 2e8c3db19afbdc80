"""Small models with random weights for tests and benchmarks, including users' own tests.

Nothing here downloads anything.
"""

import dataclasses
import io
import itertools
import os
import string
import zlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from musicgen_jax.conditioning.separator import Separator
from musicgen_jax.config import (
    EncodecConfig,
    HTDemucsConfig,
    LMConfig,
    MertConfig,
    MusicGenConfig,
    StyleConfig,
    T5Config,
)
from musicgen_jax.errors import UserError
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.weights import quantize
from musicgen_jax.storage import checkpoint

_T5 = T5Config(
    vocab_size=80, d_model=12, d_kv=3, d_ff=20, num_layers=2, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=20,
)  # fmt: skip
_ENCODEC = EncodecConfig(
    sample_rate=4000, n_filters=2, ratios=(10, 8), dimension=6, bins=37, n_q=4, lstm=1
)
_LM = LMConfig(dim=16, num_heads=2, num_layers=2, card=37, text_dim=12, ffn_dim=24)

# All parts have the proportions of an official model and are small enough to compile in a second.
# The codec makes 50 frames per second, and clips are up to 3 seconds long.
DEBUG = MusicGenConfig(_T5, _LM, _ENCODEC, max_duration=3.0, name="debug")
DEBUG_STEREO = MusicGenConfig(
    _T5,
    LMConfig(
        dim=16, num_heads=2, num_layers=2, card=37, text_dim=12, ffn_dim=24,
        n_q=8, delays=(0, 0, 1, 1, 2, 2, 3, 3),
    ),
    _ENCODEC,
    audio_channels=2,
    max_duration=3.0,
    name="debug-stereo",
)  # fmt: skip

# Windows of 10 seconds; the melody of a window has 10 frames.
DEBUG_MELODY = dataclasses.replace(
    DEBUG,
    lm=dataclasses.replace(_LM, conditioning="prepend", chroma_bins=12),
    max_duration=10.0,
    name="debug-melody",
)
# A style model: MERT makes 300 frames per second, and every fourth frame becomes a token.
DEBUG_STYLE = MusicGenConfig(
    _T5,
    LMConfig(
        dim=16, num_heads=2, num_layers=2, card=37, text_dim=12, ffn_dim=24, conditioning="prepend",
        style=StyleConfig(
            feature_dim=12, dim=8, num_heads=2, num_layers=2, ffn_dim=12, n_q=4, bins=11,
            ds_factor=4,
        ),
    ),
    _ENCODEC,
    max_duration=3.0,
    name="debug-style",
    mert=MertConfig(
        sample_rate=3000, conv_dim=(5, 7), conv_kernel=(10, 3), conv_stride=(5, 2), dim=12,
        num_heads=2, num_layers=2, ffn_dim=14, conv_pos_kernel=4, conv_pos_groups=2,
    ),
)  # fmt: skip


# Segments of 0.3 seconds.
DEBUG_SEPARATOR = HTDemucsConfig(
    sample_rate=2000, segment_length=601, channels=4, depth=2, nfft=128, dconv_comp=2,
    bottom_channels=8, t_layers=2, t_heads=2,
)  # fmt: skip


_SMALL = 0.02  # standard deviation of `device_params`


class DummyTokenizer:
    """A stand-in for `Tokenizer` that needs no file; each word is a token whose id is a checksum.

    Args:
      vocab_size: upper limit of the ids, exclusive; 0 and 1 are padding and the end, as in T5.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def __call__(
        self, texts: Sequence[str | None], length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """B texts to ids, int32 [B, L], and mask, bool [B, L]; a row without text is all False."""
        span = self.vocab_size - 2
        rows = [
            [2 + zlib.crc32(word.encode()) % span for word in (text or "").split()] + [1]
            for text in texts
        ]
        longest = max(len(row) for row in rows)
        if length is not None and length < longest:
            raise UserError(f"a prompt has {longest} tokens, at most {length} fit")
        ids = np.zeros((len(rows), length or longest), np.int32)
        mask = np.zeros(ids.shape, bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = bool(texts[i])
        return ids, mask


def _is_int8(node: object) -> bool:
    return isinstance(node, dict) and node.keys() == {"int8", "scale"}


def random_params(abstract: dict, *, seed: int = 0, std: float = 0.3) -> dict:
    """Normal random numbers in the shapes of `abstract`.

    Their mean is 1 for the scales of norms and 0 for all other parameters. With a standard
    deviation of 0.3 every part of a small model affects the output. With the usual initialisation
    attention is flat, and a transposed weight can go unnoticed.

    Args:
      abstract: nested dicts of `jax.ShapeDtypeStruct`.
      seed: seed of the numbers.
      std: standard deviation of the numbers.

    Returns:
      Nested dicts of arrays, with the dtypes of `abstract`.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        shape = leaf["int8"].shape if _is_int8(leaf) else leaf.shape
        values = rng.standard_normal(shape, np.float32) * np.float32(std)
        if _is_int8(leaf):  # the numbers of the float model, rounded
            return dict(zip(("int8", "scale"), quantize(jax.device_put(values)), strict=True))
        # Cast by NumPy and handed over as it is: jnp.asarray compiles a program for each shape.
        return jax.device_put((values + (str(path[-1].key) == "scale")).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, abstract, is_leaf=_is_int8)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, mean: float) -> jax.Array:
    return (mean + _SMALL * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


@partial(jax.jit, static_argnums=1)
def _whole(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)


def device_params(abstract: dict) -> dict:
    """Random weights made on the device: a large model's would take a host longer than the test.

    Args:
      abstract: nested dicts of `jax.ShapeDtypeStruct`.

    Returns:
      nested dicts of arrays with a standard deviation of 0.02, around 1 in the scales of norms.
    """
    # The device's own generator: it compiles and runs faster, and nothing depends on the numbers.
    keys = (jax.random.key(seed, impl="rbg") for seed in itertools.count())

    def draw(path: tuple, leaf) -> object:
        if _is_int8(leaf):
            scale = leaf["scale"]  # 74 is the standard deviation of these whole numbers
            return {
                "int8": _whole(next(keys), leaf["int8"].shape),
                "scale": jnp.full(scale.shape, _SMALL / 74, scale.dtype),
            }
        mean = 1.0 if str(path[-1].key) == "scale" else 0.0
        return _normal(next(keys), leaf.shape, leaf.dtype, mean)

    return jax.tree_util.tree_map_with_path(draw, abstract, is_leaf=_is_int8)


def random_model(
    config: MusicGenConfig = DEBUG,
    *,
    seed: int = 0,
    std: float = 0.3,
    dtype: DTypeLike = jnp.float32,
    tokenizer=None,
    mesh: Mesh | None = None,
) -> MusicGen:
    """A whole model with random weights; it generates noise, but runs all of the real code.

    Args:
      config: the architecture.
      seed: seed of the weights.
      std: standard deviation of the weights, see `random_params`.
      dtype: dtype of the language model.
      tokenizer: the tokenizer (default: a `DummyTokenizer`).
      mesh: device mesh for the weights, see `MusicGen.from_pretrained`.
    """
    seeds = {"t5": seed, "lm": seed + 1, "encodec": seed + 2, "mert": seed + 3}
    return MusicGen.build(
        config,
        lambda name, abstract: random_params(abstract, seed=seeds[name], std=std),
        tokenizer or DummyTokenizer(config.t5.vocab_size),
        dtype=dtype,
        mesh=mesh,
    )


def random_separator(config: HTDemucsConfig = DEBUG_SEPARATOR, *, seed: int = 0) -> Separator:
    """A separator with random weights; its stems are noise that is as loud as the input."""
    return Separator.build(config, lambda abstract: random_params(abstract, seed=seed, std=0.2))


def save_random_separator(
    path: str | os.PathLike, config: HTDemucsConfig = DEBUG_SEPARATOR, *, seed: int = 0
) -> None:
    """Writes the folder of a random separator, for code that calls `from_pretrained`."""
    with checkpoint.writing_model(path) as writer:
        state = nnx.state(random_separator(config, seed=seed).model)
        writer.write_component("separator", nnx.to_pure_dict(state))
        writer.finish(
            {"separator": config},
            tokenizer=None,
            license="Random numbers: nobody's.",
            source={"random seed": seed},
        )


def model_params(model: MusicGen) -> dict[str, dict]:
    """A model's weights by component, in the form that `checkpoint.save_model` accepts."""
    parts = {name: getattr(model, name) for name in checkpoint.component_configs(model.config)}
    return {name: nnx.to_pure_dict(nnx.state(part)) for name, part in parts.items()}


def character_tokenizer() -> bytes:
    """A sentencepiece model with T5's special ids; its pieces are letters and digits."""
    import sentencepiece

    characters = string.ascii_lowercase + string.digits + ".,-"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(characters)]),
        model_writer=model,
        model_type="char",
        vocab_size=len(characters) + 4,  # plus the three special ids below and the space
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def save_random_model(
    path: str | os.PathLike, config: MusicGenConfig = DEBUG, *, seed: int = 0
) -> None:
    """Writes the folder of a random model, for code that calls `from_pretrained`."""
    checkpoint.save_model(
        path,
        config,
        model_params(random_model(config, seed=seed)),
        tokenizer=character_tokenizer(),
        license="Random numbers: nobody's.",
        source={"random seed": seed},
    )
