"""What `musicgen-jax bench` measures, the most important first."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from musicgen_jax import __version__, testing
from musicgen_jax.commands import doctor_checks, sizes
from musicgen_jax.config import OFFICIAL_MODELS, MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.generation.decode import example_keys, generate_codes
from musicgen_jax.generation.traffic import bytes_per_step
from musicgen_jax.model import MusicGen
from musicgen_jax.runtime import bandwidth, memory, tuning
from musicgen_jax.storage import checkpoint, hub

Measured = tuple[str, dict[str, Any]]

COUNT = 7  # lines of `measure`, if nothing is left out
_RUNS = 3
_PASSES = 8
_TEXT = "a calm waltz"
_FIRST_SOUND = 2.0  # seconds of the piece whose first chunk is waited for
_CODEC_SECONDS = 5.0


def measure(
    name: str, dtype: str | None, *, batch: int, steps: int, limit: float
) -> Iterator[Measured]:
    """Measures one shape on the first device.

    Args:
      name: an official model's without "facebook/musicgen-", or "nano".
      dtype: of the language model's matrices; None for this device's default.
      batch: B, clips at once.
      steps: S, of the language model in each run.
      limit: seconds after which nothing more is started. A measurement that is running is finished.

    Yields:
      a line for people and the same as JSON types.

    Raises:
      UserError: the model does not fit.
    """
    end = time.monotonic() + limit
    config = _config(name)
    kind = tuning.lm_dtypes(dtype)[1].name
    device = jax.devices()[0]
    _check_fits(name, config, kind, batch, device)
    about = {
        "device": device.device_kind, "platform": device.platform, "jax": jax.__version__,
        "musicgen-jax": __version__, "model": name, "dtype": kind, "batch": batch, "steps": steps,
    }  # fmt: skip
    where = f"{device.device_kind} ({device.platform}), jax {jax.__version__}"
    yield f"{name} with random weights in {kind}, batch {batch}, on {where}", about

    rate = _copy_rate(device)
    yield f"memory: {rate / 1e9:.1f} GB/s copied", {"copy_bytes_per_second": round(rate)}
    start = time.monotonic()
    model = MusicGen.build(
        config,
        _weights,
        testing.DummyTokenizer(config.t5.vocab_size),
        dtype=dtype,
    )
    jax.block_until_ready(model.lm)
    seconds = time.monotonic() - start
    yield f"weights: made in {seconds:.1f} s", {"weights_seconds": round(seconds, 2)}

    parts: dict[str, Callable[[], Measured]] = {
        "steps": lambda: _steps(model, batch, steps, rate),
        "first audio": lambda: _first_audio(model),
        "codec": lambda: _codec(model),
    }
    left = []
    for what, part in parts.items():
        if time.monotonic() < end:
            yield part()
        else:
            left.append(what)
    yield _peak(device)
    if left:
        yield f"left out, because {limit:g} s have passed: {', '.join(left)}", {"left_out": left}


def _weights(component: str, abstract: dict[str, Any]) -> dict[str, Any]:
    # Each shape that the device draws is compiled first: the host is faster for small networks.
    large = component == "lm"
    return testing.device_params(abstract) if large else testing.random_params(abstract, std=0.02)


def _config(name: str) -> MusicGenConfig:
    if name == hub.BUNDLED:
        return checkpoint.load_config(hub.find_model(name))
    return OFFICIAL_MODELS[f"facebook/musicgen-{name}"]


def _check_fits(name: str, config: MusicGenConfig, dtype: str, batch: int, device: Any) -> None:
    needed, there = sizes.needs(config, dtype, batch).total, doctor_checks.device_memory(device)
    if there is not None and needed > there:
        raise UserError(
            f"{name} in {dtype} with a batch of {batch} needs "
            f"{doctor_checks.gigabytes(needed)}, and this device has "
            f"{doctor_checks.gigabytes(there)}: choose a smaller --model, --dtype or --batch"
        )


def _copy_rate(device: Any) -> float:
    """Bytes per second, half of them read and half written; the best of some runs."""
    size = 1 << (28 if device.platform == "cpu" else 31)
    copying = bandwidth.memory_streams(size, _PASSES)["copying"]
    copying()
    return size * _PASSES / min(_seconds(copying) for _ in range(_RUNS))


def _steps(model: MusicGen, batch: int, steps: int, rate: float) -> Measured:
    """The language model alone, with guidance and the default sampling."""
    lm = model.lm
    condition = model.text_condition([_TEXT] * batch)
    frames, keys = steps - max(lm.config.delays), example_keys(0, batch)

    def make() -> object:
        return generate_codes(lm, condition, num_frames=frames, keys=keys)

    first = _seconds(make)
    found = sorted(steps / _seconds(make) for _ in range(_RUNS))
    speed = statistics.median(found)
    moved = bytes_per_step(lm, batch, steps)
    share = (moved["weights"] + moved["cache"]) * speed / rate
    music = speed * batch / model.frame_rate
    data = {
        "steps_per_second": round(speed, 2),
        "steps_per_second_of_runs": [round(each, 2) for each in found],
        "fraction_of_copying": round(share, 3),
        "times_real_time": round(music, 3),
        "first_run_seconds": round(first, 2),
    }
    text = (
        f"steps: {speed:.1f} a second ({found[0]:.1f} to {found[-1]:.1f}), {share:.0%} of the copy "
        f"bandwidth; {music:.2f} s of music a second; the first run, which compiles, {first:.1f} s"
    )
    return text, data


def _first_audio(model: MusicGen) -> Measured:
    """From a prompt to the first chunk of a stream."""

    def wait() -> object:
        chunks = model.stream([_TEXT], duration=_FIRST_SOUND)
        return next(iter(chunks))

    first, warm = _seconds(wait), _seconds(wait)
    data = {"first_audio_seconds": round(warm, 3), "first_audio_cold_seconds": round(first, 2)}
    return f"first audio: after {warm:.2f} s, the first time after {first:.1f} s", data


def _codec(model: MusicGen) -> Measured:
    """Seconds of audio encoded and decoded in a second."""
    samples = round(_CODEC_SECONDS * model.sample_rate)
    wave = 0.1 * np.random.default_rng(0).standard_normal((model.audio_channels, samples))
    audio = wave.astype(np.float32)
    codes = model.encode(audio, model.sample_rate)
    jax.block_until_ready(model.decode(codes))
    encode = _CODEC_SECONDS / _seconds(lambda: model.encode(audio, model.sample_rate))
    decode = _CODEC_SECONDS / _seconds(lambda: model.decode(codes))
    data = {"codec_encodes": round(encode, 2), "codec_decodes": round(decode, 2)}
    return f"codec: encodes {encode:.1f} and decodes {decode:.1f} s of audio a second", data


def _peak(device: Any) -> Measured:
    """The peak memory in use: an accelerator's own memory, or on a CPU this process's."""
    if device.platform == "cpu":
        found = memory.peak()
    else:
        found = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if found is None:
        return "peak memory: unknown on this system", {"peak_bytes": None}
    return f"peak memory: {doctor_checks.gigabytes(found)}", {"peak_bytes": found}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
