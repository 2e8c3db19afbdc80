"""Writes a model as StableHLO programs with its weights, to run without this package.

    musicgen-small-export/
      manifest.json     sizes, and the arguments and results of every program; written last
      text.bin          ids, mask -> vectors of the text
      start.bin         vectors, mask, seeds, length -> state, and the constants of all steps
      greedy.bin        state -> state some steps later, taking the most likely token each time
      sample.bin        the same with sampling
      audio.bin         codes -> waveform
      text.npz, language.npz, audio.npz  weights, passed as arguments to the programs that use them
      run.py            reads and runs all of this with only JAX and NumPy
      tokenizer.model, LICENSE

The programs are those of `MusicGen.generate`, traced from the same functions. A file of
`jax.export` holds one program for several platforms. Later releases of JAX can read it for at least
half a year.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from musicgen_jax import files
from musicgen_jax.config import EncodecConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.export import run as runner
from musicgen_jax.generation.decode import KEYS
from musicgen_jax.generation.guidance import guided
from musicgen_jax.generation.plan import cache_lengths
from musicgen_jax.generation.program import (
    UNKNOWN,
    Context,
    DecodeState,
    Requests,
    advance,
    start,
)
from musicgen_jax.generation.request import check_sampling
from musicgen_jax.generation.sampling import Mode, Numbers
from musicgen_jax.generation.settings import DEFAULT_SAMPLING, Sampling
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.attention import LayerCache
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.encodec.channels import to_rows
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.transformer import CrossCache
from musicgen_jax.nn.weights import Int8Param
from musicgen_jax.runtime.tuning import tuning
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.arrays import unflatten

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
MAX_BATCH = 1024
_MAX_TOKENS = 1024
_MANIFEST = "manifest.json"
_CROSS = ("query", "k", "v")  # the arrays of a `CrossCache`

Part = TypeVar("Part", bound=nnx.Module)
Named = dict[str, Any]  # arrays, or their shapes, by name


def export_model(
    model: MusicGen,
    path: str | os.PathLike,
    *,
    batch: int = 1,
    duration: float | None = None,
    tokens: int = 64,
    top_k: int = DEFAULT_SAMPLING.top_k,
    nucleus: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    source: str | os.PathLike | None = None,
    bar: Bar = plain,
) -> Path:
    """Writes a text model as a folder that needs only JAX and NumPy.

    The text, the length up to `duration`, the seeds, the temperature and the guidance strength are
    arguments of the programs. Everything that determines array shapes is chosen here. The programs
    always use guidance; a row whose mask is all False gives music without a description.

    Args:
      model: a text model, mono or stereo, in the dtype in which it should run.
      path: the folder to create.
      batch: B, the number of clips per call.
      duration: maximum length of a clip in seconds (default and upper limit:
        `model.max_duration`).
      tokens: L, the maximum number of tokens in a text; rounded up to a multiple of 16.
      top_k: `top_k` for sampling, as in `MusicGen.generate`.
      nucleus: whether the sampling program takes a `top_p`.
      platforms: target platforms of the programs: "cpu", "cuda" and "tpu", or some of them.
      source: the model's folder, from which tokenizer and licence are copied; None copies neither.
      bar: wraps the iteration over programs.

    Returns:
      `path`.

    Raises:
      UserError: the model takes melodies or styles, an argument is out of range, or `path` exists.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("exporting needs flatbuffers: pip install 'musicgen-jax[export]'")
    _check(model, batch, duration, tokens, top_k, platforms)
    target = Path(path).absolute()
    with files.new_folder(target) as folder:
        _write(
            folder,
            model,
            batch=batch,
            frames=int((duration or model.max_duration) * model.frame_rate),
            tokens=-(-tokens // 16) * 16,
            top_k=top_k,
            nucleus=nucleus,
            platforms=tuple(platforms),
            bar=bar,
        )
        shutil.copy(runner.__file__, folder / "run.py")
        for name in (checkpoint.TOKENIZER, "LICENSE"):
            if source is not None and (Path(source) / name).is_file():
                files.copy_file(Path(source) / name, folder / name)
    return target


def _check(model, batch, duration, tokens, top_k, platforms) -> None:
    if model.config.lm.conditioning != "cross" or model.config.lm.hears:
        raise UserError(
            f"{model.name or 'this model'} takes melodies or styles, and only text models can be "
            "exported: musicgen-small, -medium, -large, their stereo ones, nano"
        )
    if isinstance(model.lm.heads.weight, Int8Param):
        raise UserError("int8 models are not exported: load it as float32 or bfloat16")
    if not is_int(batch) or not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch must be from 1 to {MAX_BATCH}, got {batch!r}")
    if not is_int(tokens) or not 1 <= tokens <= _MAX_TOKENS:
        raise UserError(f"tokens must be from 1 to {_MAX_TOKENS}, got {tokens!r}")
    least, most = 1 / model.frame_rate, model.max_duration
    if duration is not None and not (is_number(duration) and least <= duration <= most):
        raise UserError(f"duration must be from {least:g} to {most:g} seconds, got {duration!r}")
    check_sampling(model.config, Sampling(top_k=top_k))
    if not platforms or not set(platforms) <= set(PLATFORMS) or isinstance(platforms, str):
        raise UserError(f"platforms must be some of {', '.join(PLATFORMS)}, got {platforms!r}")


def _write(
    folder: Path,
    model: MusicGen,
    *,
    batch: int,
    frames: int,
    tokens: int,
    top_k: int,
    nucleus: bool,
    platforms: tuple[str, ...],
    bar: Bar,
) -> None:
    programs, weights = trace(
        model,
        batch=batch,
        frames=frames,
        tokens=tokens,
        top_k=top_k,
        nucleus=nucleus,
        platforms=platforms,
        bar=bar,
    )
    described = {}
    for name, (program, signature) in programs.items():
        (folder / f"{name}.bin").write_bytes(program.serialize())
        described[name] = {"file": f"{name}.bin", **signature}
    for name, arrays in weights.items():
        host = {key: np.asarray(array) for key, array in arrays.items()}
        np.savez(folder / f"{name}.npz", **host)  # type: ignore[arg-type]
    config = model.config
    manifest = {
        "format": FORMAT,
        "model": model.name,
        "jax": jax.__version__,
        "platforms": list(platforms),
        "batch": batch,
        "tokens": tokens,
        "frames": frames,
        "frame_rate": model.frame_rate,
        "sample_rate": model.sample_rate,
        "audio_channels": model.audio_channels,
        "codebooks": config.lm.n_q,
        "codes": config.lm.card,
        "delays": list(config.lm.delays),
        "top_k": top_k,
        "nucleus": nucleus,
        "weights": {
            name: {"file": f"{name}.npz", "arrays": _shapes(arrays)}
            for name, arrays in weights.items()
        },
        "programs": described,
    }
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / _MANIFEST).write_text(text, encoding="utf-8")


# --- The programs ---------------------------------------------------------------------------------


def trace(
    model: MusicGen,
    *,
    batch: int,
    frames: int,
    tokens: int,
    top_k: int,
    nucleus: bool,
    platforms: tuple[str, ...],
    bar: Bar = plain,
) -> tuple[dict[str, tuple[jax_export.Exported, dict]], dict[str, Named]]:
    """Traces and lowers all programs; runs none of them, so it needs no device of `platforms`.

    Args:
      model: a text model.
      batch: B, the number of clips per call.
      frames: T, the maximum number of frames in a clip.
      tokens: L, the number of tokens in a text.
      top_k: `top_k` of the sampling program; 0 for all tokens.
      nucleus: whether the sampling program takes a `top_p`.
      platforms: target platforms of the programs.
      bar: wraps the iteration over programs.

    Returns:
      Programs by name, each with its signature in plain JSON types; and weights by name.
    """
    language = _Language(model.lm, batch, frames, platforms)
    text_weights, text = _text(model, language.lm)
    audio_weights, audio = _audio(model)
    weights = {"text": text_weights, "language": language.weights, "audio": audio_weights}
    shapes = {name: _abstract(arrays) for name, arrays in weights.items()}

    of = jax.ShapeDtypeStruct
    lm = language.lm
    ids, mask = of((batch, tokens), jnp.int32), of((batch, tokens), jnp.bool_)
    vectors = of((batch, tokens, lm.config.dim), lm.dtype)
    who, whole, number = of((batch,), "uint32"), of((), "int32"), of((), "float32")
    begins = {"vectors": vectors, "mask": mask, "seeds": who, "rows": who, "frames": whole}
    state, constant = jax.eval_shape(language.start, shapes["language"], *begins.values())
    numbers = {"count": whole, "temperature": number, "top_p": number, "cfg_coef": number}
    steps = {"weights": "language", "state": state, "constant": constant, **numbers}
    least = least_frames(model.config.encodec)
    (T,) = jax_export.symbolic_shape("T", constraints=[f"T >= {least}"])
    codes = of((batch, lm.config.n_q, T), jnp.int32)
    programs: dict[str, tuple[Callable, dict]] = {
        "text": (text, {"weights": "text", "ids": ids, "mask": mask}),
        "start": (language.start, {"weights": "language", **begins}),
        "greedy": (partial(language.steps, Mode(greedy=True, top_k=False), 0), steps),
        "sample": (partial(language.steps, Mode(False, top_k > 0, nucleus), top_k), steps),
        "audio": (audio, {"weights": "audio", "codes": codes}),
    }
    exported = {}
    tracing = bar(programs.items(), total=len(programs), desc="tracing", unit="program")
    for name, (function, arguments_) in tracing:
        # An argument that is a string names a file of weights.
        values = [shapes[a] if isinstance(a, str) else a for a in arguments_.values()]
        program = jax_export.export(jax.jit(function), platforms=platforms)(*values)
        results = jax.tree.unflatten(program.out_tree, program.out_avals)
        signature = {
            "arguments": [{"name": key, **_described(a)} for key, a in arguments_.items()],
            "results": [_described(r) for r in (results if name == "start" else [results])],
        }
        exported[name] = program, signature
    return exported, weights


def _text(model: MusicGen, lm: LM) -> tuple[Named, Callable]:
    """Weights and program of the text encoder."""
    weights, build = _split_params(nnx.Dict(t5=model.t5, text_conditioner=lm.text_conditioner))

    def text(weights, ids, mask):
        parts = build(weights)
        return parts["text_conditioner"](parts["t5"](ids, mask), mask)

    return weights, text


def _audio(model: MusicGen) -> tuple[Named, Callable]:
    """Weights and program of the codec's decoder."""
    codec, C = model.encodec, model.audio_channels
    weights, build = _split_params(nnx.Dict(quantizer=codec.quantizer, decoder=codec.decoder))

    def audio(weights, codes):
        parts: Any = build(weights)
        # The codec is mono: a stereo model's channels are rows of its batch.
        wav = parts["decoder"](parts["quantizer"].decode(to_rows(codes, C)))  # [B C, W, 1]
        return wav.reshape(len(codes), C, wav.shape[1])

    return weights, audio


class _Language:
    """The programs of the language model, with named arrays instead of trees.

    Args:
      lm: a text model.
      batch: B, the number of clips per call.
      frames: T, the maximum number of frames in a clip.
      platforms: target platforms. A single platform gets its own tuning; several platforms share
        the tuning of a GPU, which suits all of them.
    """

    def __init__(self, lm: LM, batch: int, frames: int, platforms: tuple[str, ...]):
        self.lm = nnx.merge(*nnx.split(lm))
        chosen = tuning(platforms[0] if len(platforms) == 1 else "gpu")
        # Folding pays off only for short texts, and a program does not show the text's length.
        self.lm.tuning = dataclasses.replace(chosen, fold_short_text=())
        self.weights, self._build = _split_params(self.lm)
        self._batch = batch
        self._slots = cache_lengths(frames + max(lm.config.delays), self.lm.tuning)[-1]

    def start(self, weights, vectors, mask, seeds, rows, frames):
        """Vectors, mask, seeds, rows and length to a state and the constants of all steps."""
        lm, B = self._build(weights), self._batch
        condition = guided(lm, Condition(Embedded(vectors, mask)), copies=2)
        limit = jnp.full(B, frames + max(lm.config.delays), jnp.int32)
        settings = Numbers.of([Sampling()] * B)  # placeholders: `steps` takes the real ones
        steps = _empty_steps(lm, B, self._slots, frames)
        requests = Requests(steps, jnp.zeros(B, jnp.int32), limit, keys_of(seeds, rows), settings)
        state, context = start(
            lm, requests, condition, prefill_length=0, slots=self._slots, copies=2
        )
        return _flat_state(state), _flat_context(context)

    def steps(self, mode, top_k, weights, state, constant, count, temperature, top_p, cfg_coef):
        """Runs `count` steps."""
        row = jnp.ones(self._batch, jnp.float32)
        top_k = jnp.full(self._batch, top_k, jnp.int32)
        numbers = Numbers(row * temperature, top_k, row * top_p, row * cfg_coef, row)
        context = _context(constant, numbers)
        lm = self._build(weights)
        return _flat_state(advance(lm, _state(state), context, count, mode=mode))


def least_frames(config: EncodecConfig) -> int:
    """The least number of frames from which the codec's padding no longer depends on it."""
    dilation = config.dilation_base ** max(config.n_residual_layers - 1, 0)
    residual = (config.residual_kernel_size - 1) * dilation + 1
    return max(config.kernel_size, config.last_kernel_size, residual)


def keys_of(seeds: jax.Array, rows: jax.Array) -> jax.Array:
    """Like `decode.example_keys`, for seeds and rows that are program arguments, uint32 [B]."""
    key = jax.vmap(lambda seed: jax.random.key(seed, impl=KEYS))(seeds)
    return jax.vmap(jax.random.fold_in)(key, rows)


def _empty_steps(lm: LM, batch: int, length: int, frames: jax.Array) -> jax.Array:
    """Steps of `frames` unknown codes; `frames` is an argument of a program."""
    delays = jnp.asarray(lm.config.delays, jnp.int32)[:, None]
    frame = jnp.arange(length + 1, dtype=jnp.int32)[None] - 1 - delays  # [K, S]
    steps = jnp.where((frame >= 0) & (frame < frames), UNKNOWN, lm.config.special_token)
    return jnp.broadcast_to(steps.astype(jnp.int32), (batch, *steps.shape))


# --- Names instead of trees: a reader does not need our classes -----------------------------------


def _split_params(module: Part) -> tuple[Named, Callable[[Mapping[str, Any]], Part]]:
    """A module's weights by name, and a function that builds the module from such weights."""
    graphdef, state = nnx.split(module)
    paths, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    keys = [tuple(key.key for key in path) for path, _ in paths]
    names = [".".join(map(str, path)) for path in keys]

    def build(weights: Mapping[str, Any]) -> Part:
        tree = unflatten({path: weights[name] for name, path in zip(names, keys, strict=True)})
        fresh = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(fresh, tree)
        return nnx.merge(graphdef, fresh)

    return {name: leaf for name, (_, leaf) in zip(names, paths, strict=True)}, build


def _flat_state(state: DecodeState) -> Named:
    caches = _numbered(k=[c.k for c in state.cache], v=[c.v for c in state.cache])
    return {"step": state.step, "steps": state.steps} | caches


def _state(flat: Mapping[str, Any]) -> DecodeState:
    cache = tuple(LayerCache(k, v) for k, v in _rows_of(flat, "k", "v"))
    return DecodeState(flat["step"], flat["steps"], cache)


def _flat_context(context: Context) -> Named:
    text, cross = context.condition.text, context.cross
    assert text is not None
    assert cross is not None
    flat = {"limit": context.limit, "keys": jax.random.key_data(context.keys)}
    flat |= {"mask": text.mask, "vectors": text.vectors}
    return flat | _numbered(**{part: [getattr(c, part) for c in cross] for part in _CROSS})


def _context(flat: Mapping[str, Any], numbers: Numbers) -> Context:
    keys = jax.random.wrap_key_data(flat["keys"], impl=KEYS)
    condition = Condition(Embedded(flat["vectors"], flat["mask"]))
    cross = tuple(CrossCache(*parts) for parts in _rows_of(flat, *_CROSS))
    return Context(flat["limit"], keys, numbers, condition, cross)


def _numbered(**lists: list) -> Named:
    return {f"{name}.{i}": each for name, values in lists.items() for i, each in enumerate(values)}


def _rows_of(flat: Mapping[str, Any], *names: str) -> list[tuple]:
    layers = sum(key.startswith(f"{names[0]}.") for key in flat)
    return [tuple(flat[f"{name}.{i}"] for name in names) for i in range(layers)]


def _abstract(arrays: Mapping[str, Any]) -> Named:
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}


def _shapes(arrays: Mapping[str, Any]) -> dict:
    return {name: _described(a) for name, a in arrays.items()}


def _described(value: Any) -> dict:
    if isinstance(value, str):
        return {"weights": value}
    if isinstance(value, Mapping):
        return {"tree": _shapes(value)}
    shape = [n if isinstance(n, int) else str(n) for n in value.shape]
    return {"shape": shape, "dtype": str(value.dtype)}
