"""MusicGen: the parts, and the way through them.

    description -> T5 -> condition              text.py; melody and style beside it
    condition -> LM over delayed codebooks      windows.py, a piece; generate.py, a window
    codes -> EnCodec -> waveform                `MusicGen.decode`; joins.py, a piece as it grows

`piece.generate_piece` goes all of the way. This file owns the parts and holds no mathematics.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning import arguments, melody, style, text
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_int
from musicgen_jax.generation import continuation, scoring
from musicgen_jax.generation.piece import (
    DEFAULT_DURATION,
    GenerationOutput,
    OnAudio,
    Piece,
    check_codes,
    generate_piece,
)
from musicgen_jax.generation.progress import Progress, progress_callback
from musicgen_jax.nn import lora
from musicgen_jax.nn.encodec import Encodec, channels
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.runtime import compile_cache, sharding
from musicgen_jax.storage import checkpoint, hub, loading, lora_file

__all__ = ["GenerationOutput", "MusicGen"]


class MusicGen:
    """A whole model: text encoder, language model, codec.

    Holds no settings that a call could leave behind: what shapes the music is an argument.

    Args:
      config: the architecture.
      t5: text encoder.
      lm: language model, with its text conditioner.
      encodec: codec.
      tokenizer: B texts to ids int32 [B, L] and mask bool [B, L]; a row that is None or "" has
        an all-False mask.
      mert: hears the style of a clip; in the style model.
      adapters: by name, see `use_adapter`.
      float_lm: gives the language model's parameters as float32; what adapters are added to if it
        is an int8 one.
    """

    def __init__(
        self,
        config: MusicGenConfig,
        t5: T5Encoder,
        lm: LM,
        encodec: Encodec,
        tokenizer: loading.TextToTokens,
        mert: Mert | None = None,
        *,
        adapters: Mapping[str, lora.Adapter] | None = None,
        float_lm: Callable[[], dict] | None = None,
    ):
        self.config = config
        self.t5 = t5
        self.lm = lm
        self.encodec = encodec
        self.tokenizer = tokenizer
        self.mert = mert
        self.adapters = dict(adapters or {})
        self._plain_lm = lm  # without any adapter
        self._float_lm = float_lm

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        dtype: DTypeLike | None = None,
        cache_dtype: DTypeLike | None = None,
        adapters: Mapping[str, str | os.PathLike] | None = None,
        mesh: Mesh | None = None,
    ) -> "MusicGen":
        """Loads a model, and turns on the cache of compiled programs, see `compile_cache`.

        Args:
          name_or_path: "nano" (comes with the package), a converted model's folder, or an
            official name such as "facebook/musicgen-small" or just "small": converted once,
            with the extra `[hub]`, into the folder `musicgen_jax.storage.hub.models_home()`.
          dtype: of the language model, float32, bfloat16 or int8; by default float32 on a CPU and
            bfloat16 elsewhere. int8 rounds its matrices (and on a CPU what is multiplied with
            them) to whole numbers per row: the fastest on a CPU, a quarter of the memory, and not
            exactly the same music. Text encoder and codec are float32.
          cache_dtype: of the keys and values that the language model keeps of all steps. By default
            as it computes, and float32 on a CPU. float8_e4m3fn is for large batches on a GPU or
            TPU, whose memory is mostly this cache, and not exactly the same music.
          adapters: files of fine-tuned adapters by a name of your choice, see `use_adapter`.
          mesh: many devices, from `sharding.make_mesh`: weights are read straight to where they
            belong, and everything generated is spread over them. By default the first device.

        Raises:
          UserError: there is no such model, it is incomplete, `dtype` is none of these, or an
            adapter is none, or another model's.
        """
        compile_cache.enable()
        # Before anything is looked for, let alone converted.
        arguments.lm_dtypes(dtype)
        arguments.cache_dtype(cache_dtype)
        folder = hub.find_model(name_or_path)
        config = checkpoint.load_config(folder)
        loaded = {name: lora_file.load(path, config.lm) for name, path in (adapters or {}).items()}
        types = {"dtype": dtype, "cache_dtype": cache_dtype}
        parts = loading.load_parts(folder, config, **types, mesh=mesh)
        return cls(*parts, adapters=loaded, float_lm=partial(loading.load_float_lm, folder, config))

    @classmethod
    def build(
        cls,
        config: MusicGenConfig,
        weights: loading.Weights,
        tokenizer: loading.TextToTokens,
        *,
        dtype: DTypeLike | None = jnp.float32,
        cache_dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
    ) -> "MusicGen":
        """Puts a model together, without ever holding other weights than those given.

        Args:
          config: the architecture.
          weights: called with a component ("t5", "mert", "lm", "encodec"), those that `config`
            has, and the nested dicts of `jax.ShapeDtypeStruct` it needs, on a mesh with their
            shardings; returns the same nested dicts of arrays.
          tokenizer: see the class.
          dtype: of the language model, see `from_pretrained`.
          cache_dtype: see `from_pretrained`.
          mesh: see `from_pretrained`.
        """
        types = {"dtype": dtype, "cache_dtype": cache_dtype}
        return cls(*loading.build_parts(config, weights, tokenizer, **types, mesh=mesh))

    def use_adapter(
        self, adapter: str | Mapping[str, float] | None, scale: float = 1.0
    ) -> "MusicGen":
        """This model with one of its adapters, or several at once.

        They are added to the weights that they adapt; all other weights are shared between the two
        models, which both stay as they are.

        Args:
          adapter: a name among `adapters`; {name: scale} for several; None for the plain model.
          scale: how much of it: 1 is what was trained, 0 nothing.

        Raises:
          UserError: there is no adapter of that name, or a scale is not a finite number.
        """
        chosen = {adapter: scale} if isinstance(adapter, str) else dict(adapter or {})
        total = lora.total_changes(self.adapters, chosen)
        plain = self._plain_lm
        model = MusicGen(
            self.config,
            self.t5,
            lora.adapted(plain, total, self._float_lm) if total else plain,
            self.encodec,
            self.tokenizer,
            self.mert,
            adapters=self.adapters,
            float_lm=self._float_lm,
        )
        model._plain_lm = plain
        return model

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the model lies on, None for one without a mesh."""
        return sharding.mesh_of(self.lm)

    @property
    def name(self) -> str:
        """The model's name, "" if it has none."""
        return self.config.name

    @property
    def sample_rate(self) -> int:
        """Samples per second and channel."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.config.frame_rate

    @property
    def audio_channels(self) -> int:
        """C: 1 for mono, 2 for stereo."""
        return self.config.audio_channels

    @property
    def max_duration(self) -> float:
        """Seconds that the model sees at once; longer pieces take several windows."""
        return self.config.max_duration

    # --- The stages ---------------------------------------------------------------------------

    def encode(self, audio: np.ndarray | jax.Array, sample_rate: int) -> jax.Array:
        """Codes of audio.

        Args:
          audio: float [C, W] or [B, C, W]; converted to the model's rate and channels.
          sample_rate: of `audio`, in samples per second.

        Returns:
          int32 [B, K, T], T = ceil(W / hop_length) at the model's rate. In a stereo model each
          codebook stands twice, left then right.
        """
        wav = arguments.check_audio(audio, sample_rate, "audio")
        to = self.sample_rate, self.audio_channels
        wav = np.stack([convert_audio(clip, int(sample_rate), *to) for clip in wav])
        return channels.encode(self.encodec, wav, self.mesh)

    def decode(self, codes: jax.Array | np.ndarray) -> jax.Array:
        """Audio of codes: int [B, K, T] to float32 [B, C, T * hop_length]; compiled once per T."""
        codes = check_codes(self.config, codes, "codes")
        return channels.decode(self.encodec, codes, self.audio_channels, self.mesh)

    # --- From text to music ------------------------------------------------------------------

    def generate(
        self,
        descriptions: Sequence[str | None],
        *,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = True,
        top_k: int = arguments.DEFAULT_TOP_K,
        top_p: float = 0.0,
        temperature: float = 1.0,
        cfg_coef: float = 3.0,
        progress: Progress = False,
        prompt_codes: jax.Array | np.ndarray | None = None,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike | None = None,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
    ) -> GenerationOutput:
        """Generates one clip per description.

        Args:
          descriptions: B texts; None or "" asks for music without a description.
          duration: seconds, the prompt included; up to a day. A piece longer than `max_duration`
            is generated window by window, see `musicgen_jax.generation.windows`.
          seed: an integer, or one per clip. Clip i depends on its text, the seed and i alone, not
            on the batch; with a seed of its own it is what that seed gives alone.
          use_sampling: False takes the most likely token each time.
          top_k: sample among so many most likely tokens; 0 for all.
          top_p: sample among the most likely tokens that together reach this probability; 0 for
            all. If both are set, both apply.
          temperature: above 1 more adventurous, below 1 more predictable; 0 as no sampling.
          cfg_coef: strength of guidance, how far to follow the description; 1 for none.
          progress: True for a progress bar, or a function called with (steps done, steps to do).
          prompt_codes: int [B, K, Tp] or [1, K, Tp], codes to continue; see `encode`.
          extend_stride: seconds from one window to the next in a piece longer than `max_duration`,
            which is more than it. Less of it leaves more context and takes longer. By default three
            fifths of `max_duration`: the official models' 18 s of 30.
          join: how windows meet. "hard": as in audiocraft, one row of codes decoded as one;
            "crossfade": each window makes the last second of the one before once more, and the two
            are faded into each other. See `musicgen_jax.generation.joins`.
          checkpoint: a folder that keeps every finished window. If it holds the beginning of the
            same generation by the same model, that goes on; the result is the same, bit for bit.
          on_audio: called with each stretch of audio, float32 [B, C, n], as soon as it is final;
            the result then holds none. So memory does not grow with the duration.
          chunk_seconds: length of such a stretch, while the language model still runs; by default
            whatever is fastest, after every window.

        Returns:
          T = int(duration * frame_rate) frames of music, the prompt included.

        Raises:
          UserError: an argument is out of range; the message names it.
        """
        texts = arguments.check_descriptions(descriptions)
        return generate_piece(
            self.lm,
            self.encodec,
            self.config,
            texts,
            text.text_alone(self, texts),
            duration=duration,
            prompt_codes=prompt_codes,
            seed=seed,
            progress=progress,
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            on_audio=on_audio,
            chunk_seconds=chunk_seconds,
            use_sampling=use_sampling,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            cfg_coef=cfg_coef,
        )

    def stream(
        self,
        descriptions: Sequence[str | None],
        *,
        chunk_seconds: float = 1.0,
        progress: Progress = False,
        **settings,
    ) -> Iterator[np.ndarray]:
        """Generates as `generate` does and gives out audio while the language model still runs.

        With a melody, a style or a prompt of audio the methods made for these do the same by their
        argument `on_audio`, in longer stretches.

        Args:
          descriptions: B texts; None or "" asks for music without a description.
          chunk_seconds: length of a stretch. The first one comes when the model is that long and
            a few frames more into the piece.
          progress: as in `generate`.
          **settings: the other keyword arguments of `generate`, but `on_audio`.

        Returns:
          An iterator of float32 [B, C, n]; put together they are the audio of `generate` up to
          rounding. Arguments are checked at once, before the first stretch is asked for.

        Raises:
          UserError: as `generate`.
        """
        texts = arguments.check_descriptions(descriptions)
        if chunk_seconds is None:
            raise UserError("chunk_seconds must be a number of seconds, got None")
        piece = Piece(
            self.lm,
            self.encodec,
            self.config,
            texts,
            text.text_alone(self, texts),
            chunk_seconds=chunk_seconds,
            **settings,
        )

        def chunks() -> Iterator[np.ndarray]:
            with progress_callback(progress) as callback:
                yield from piece.audio(callback)

        return chunks()

    def generate_unconditional(self, num_samples: int = 1, **settings) -> GenerationOutput:
        """Generates `num_samples` clips without a description.

        Args:
          num_samples: B.
          **settings: the keyword arguments of `generate`.
        """
        if not is_int(num_samples) or num_samples < 1:
            raise UserError(f"num_samples must be a positive integer, got {num_samples!r}")
        return self.generate([None] * num_samples, **settings)

    # Functions of a model like those above, each in the file of its idea.

    text_condition = text.text_condition
    generate_continuation = continuation.generate_continuation
    generate_with_chroma = melody.generate_with_chroma
    chroma = melody.chroma
    generate_with_style = style.generate_with_style
    style_condition = style.style_condition
    lm_logits = scoring.lm_logits
