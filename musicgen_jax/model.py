# pyright: strict, reportUnknownMemberType=false
"""MusicGen: the parts, and the way through them.

    description -> T5 -> condition              conditioning/: text, melody, style
    condition -> LM over delayed codebooks      generation/: a piece, its windows, the decode loop
    codes -> EnCodec -> waveform                nn/encodec/; generation/joins.py as a piece grows

Every method builds a checked `Request` and a condition, and hands both to `generate_piece`, or to
`generate_in_slots` of the serving room.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning.audio_input import Audio, Clips, check_audio, check_clips, rows_of
from musicgen_jax.conditioning.melody import melodies_of, melody_conditions
from musicgen_jax.conditioning.style import (
    DEFAULT_EVAL_Q,
    DEFAULT_EXCERPT,
    style_conditions,
    style_digest,
)
from musicgen_jax.conditioning.text import (
    ConditionAt,
    check_descriptions,
    text_alone,
    text_condition,
)
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_int
from musicgen_jax.generation import scoring
from musicgen_jax.generation.continuation import continuing
from musicgen_jax.generation.piece import GenerationOutput, OnAudio, Piece, generate_piece
from musicgen_jax.generation.progress import Progress, progress_callback
from musicgen_jax.generation.request import (
    Request,
    check_codes,
    match_batch,
)
from musicgen_jax.generation.schedule import Cue, CueLike
from musicgen_jax.generation.session import Session
from musicgen_jax.generation.settings import DEFAULT_DURATION, Sampling
from musicgen_jax.generation.settings import DEFAULT_SAMPLING as _DEFAULT
from musicgen_jax.nn import lora
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.encodec import Encodec, channels
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.runtime import tuning
from musicgen_jax.serving.slot_piece import Conditions, SlotPiece, generate_in_slots
from musicgen_jax.storage import checkpoint as model_folder
from musicgen_jax.storage import hub, loading, lora_file

__all__ = ["Cue", "GenerationOutput", "MusicGen", "Session"]


class MusicGen:
    """A whole model: text encoder, language model, codec.

    It keeps no settings between calls: everything that shapes the music is an argument.

    Args:
      config: the architecture.
      t5: text encoder.
      lm: language model, with its text conditioner.
      encodec: codec.
      tokenizer: B texts to ids int32 [B, L] and mask bool [B, L]; a row that is None or "" has an
        all-False mask.
      mert: extracts the features of a style; in the style model.
      adapters: by name, see `use_adapter`.
      float_lm: returns the language model's parameters as float32; adapters are added to these if
        the language model is int8.
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
        float_lm: Callable[[], dict[str, Any]] | None = None,
    ):
        self.parts = loading.Parts(config, t5, lm, encodec, tokenizer, mert)
        self.adapters = dict(adapters or {})
        self._plain_lm = lm  # without any adapter
        self._float_lm = float_lm

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        cache_dtype: DTypeLike | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        mesh: Mesh | None = None,
    ) -> "MusicGen":
        """Loads a model.

        Args:
          name_or_path: "nano" or "nano-melody" (they come with the package), a converted model's
            folder, or an official name such as "facebook/musicgen-small" or just "small". An
            official model is downloaded and converted once, with the extra `[hub]`, into the folder
            `musicgen_jax.storage.hub.models_home()`.
          dtype: of the language model: float32, bfloat16 or int8. Default: float32 on a CPU,
            bfloat16 elsewhere. int8 rounds its matrices (and on a CPU the activations that they
            multiply) to integers per row. It is fastest on a CPU and takes a quarter of the memory,
            but the music is not exactly the same. The text encoder and the codec are float32.
          cache_dtype: of the language model's key-value cache. Default: the compute dtype, and
            float32 on a CPU. float8_e4m3fn is for large batches on a GPU or TPU, whose memory is
            mostly this cache; the music is not exactly the same.
          adapters: files of fine-tuned adapters by a name of your choice, see `use_adapter`.
          mesh: many devices, from `sharding.make_mesh`: weights are read straight to their devices,
            and generation is spread over them. Default: the first device.

        Raises:
          UserError: there is no such model, it is incomplete, `dtype` is not one of these, or an
            adapter cannot be read or belongs to another model.
        """
        # Checked before anything is searched for, let alone converted.
        tuning.lm_dtypes(dtype)
        tuning.cache_dtype(cache_dtype)
        folder = hub.find_model(name_or_path)
        config = model_folder.load_config(folder)
        loaded = {name: lora_file.load(path, config.lm) for name, path in (adapters or {}).items()}
        parts = loading.load_parts(folder, config, dtype=dtype, cache_dtype=cache_dtype, mesh=mesh)
        return cls._of(parts, loaded, partial(loading.load_float_lm, folder, config))

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
        """Puts a model together without ever holding a second copy of its weights.

        Args:
          config: the architecture.
          weights: called once per component of `config` ("t5", "mert", "lm", "encodec") with the
            component's name and nested dicts of `jax.ShapeDtypeStruct`, with their shardings on a
            mesh; returns the same nested dicts of arrays.
          tokenizer: see the class.
          dtype: of the language model, see `from_pretrained`.
          cache_dtype: see `from_pretrained`.
          mesh: see `from_pretrained`.
        """
        parts = loading.build_parts(
            config, weights, tokenizer, dtype=dtype, cache_dtype=cache_dtype, mesh=mesh
        )
        return cls._of(parts, {}, None)

    @classmethod
    def _of(
        cls,
        parts: loading.Parts,
        adapters: Mapping[str, lora.Adapter],
        float_lm: Callable[[], dict[str, Any]] | None,
    ) -> "MusicGen":
        return cls(
            parts.config,
            parts.t5,
            parts.lm,
            parts.encodec,
            parts.tokenizer,
            parts.mert,
            adapters=adapters,
            float_lm=float_lm,
        )

    def use_adapter(
        self, adapter: str | Mapping[str, float] | None, scale: float = 1.0
    ) -> "MusicGen":
        """This model with one of its adapters, or several at once.

        Adapters are added to the weights that they adapt. All other weights are shared between the
        two models, and neither model changes afterwards.

        Args:
          adapter: a name among `adapters`; {name: scale} for several; None for the plain model.
          scale: how much of the adapter to add: 1 is as it was trained, 0 is none of it.

        Raises:
          UserError: there is no adapter of that name, or a scale is not a finite number.
        """
        chosen = {adapter: scale} if isinstance(adapter, str) else dict(adapter or {})
        total = lora.total_changes(self.adapters, chosen)
        plain = self._plain_lm
        adapted = lora.adapted(plain, total, self._float_lm) if total else plain
        parts = dataclasses.replace(self.parts, lm=adapted)
        model = MusicGen._of(parts, self.adapters, self._float_lm)
        model._plain_lm = plain
        return model

    # --- The parts ----------------------------------------------------------------------------

    @property
    def config(self) -> MusicGenConfig:
        """The architecture."""
        return self.parts.config

    @property
    def t5(self) -> T5Encoder:
        """The text encoder."""
        return self.parts.t5

    @property
    def lm(self) -> LM:
        """The language model."""
        return self.parts.lm

    @property
    def encodec(self) -> Encodec:
        """The codec."""
        return self.parts.encodec

    @property
    def tokenizer(self) -> loading.TextToTokens:
        """The tokenizer, see the class."""
        return self.parts.tokenizer

    @property
    def mert(self) -> Mert | None:
        """The style model's feature extractor; None in other models."""
        return self.parts.mert

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the model lies on; None without a mesh."""
        return self.parts.mesh

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
        """Seconds of the model's window; longer pieces take several windows."""
        return self.config.max_duration

    # --- The stages ---------------------------------------------------------------------------

    def encode(self, audio: Audio, sample_rate: int) -> jax.Array:
        """Codes of audio.

        Args:
          audio: float [C, W] or [B, C, W]; converted to the model's rate and channels.
          sample_rate: of `audio`, in samples per second.

        Returns:
          int32 [B, K, T], T = ceil(W / hop_length) at the model's rate. In a stereo model each
          codebook appears twice, left then right.

        Raises:
          UserError: the audio is not a float array of samples, is empty, or is not finite.
        """
        wav = check_audio(audio, sample_rate, "audio")
        rate, C = self.sample_rate, self.audio_channels
        wav = np.stack([convert_audio(clip, int(sample_rate), rate, C) for clip in wav])
        return channels.encode(self.encodec, wav, self.mesh)

    def decode(self, codes: jax.Array | np.ndarray) -> jax.Array:
        """Audio of codes: int [B, K, T] to float32 [B, C, T * hop_length]; compiled once per T.

        Raises:
          UserError: these are not codes of this model.
        """
        checked = check_codes(self.config, codes, "codes")
        return channels.decode(self.encodec, jnp.asarray(checked), self.audio_channels, self.mesh)

    def text_condition(self, descriptions: Sequence[str | None]) -> Condition:
        """The condition of B descriptions; rows without text (None or "") are null.

        Texts are padded to a power of two, so that prompts of similar length share a compilation.
        Padding is masked and never attended: it does not change a row.

        Raises:
          UserError: `descriptions` is not a list of texts and None.
        """
        return text_condition(self.parts, check_descriptions(descriptions))

    def style_condition(
        self,
        descriptions: Sequence[str | None],
        style: Clips,
        style_sample_rate: int,
        *,
        eval_q: int = DEFAULT_EVAL_Q,
        excerpt_length: float = DEFAULT_EXCERPT,
        seed: int | Sequence[int] = 0,
    ) -> Condition:
        """The condition of text and style: B rows.

        The arguments are those of `generate_with_style`. The excerpts are the ones that it takes
        for pieces of up to `max_duration`.

        Raises:
          UserError: as `generate_with_style`.
        """
        request = Request(
            config=self.config, descriptions=descriptions, duration=self.max_duration, seed=seed
        )
        condition_at = style_conditions(
            self.parts,
            request.batch,
            style,
            style_sample_rate,
            eval_q=eval_q,
            excerpt_length=excerpt_length,
            duration=request.seconds,
            keys=request.keys,
        )
        return condition_at(0.0, request.texts)

    def chroma(self, audio: Audio, sample_rate: int, *, separate: bool | None = None) -> np.ndarray:
        """The melody that a melody model extracts from audio: its loudest pitch class over time.

        Args:
          audio: float [C, W] or [B, C, W], as in `generate_with_chroma`.
          sample_rate: of `audio`, in samples per second.
          separate: see `generate_with_chroma`.

        Returns:
          float32 [1 or B, T, 12], one-hot, beginning with C; T frames span `max_duration`.

        Raises:
          UserError: this model takes no melody, or the audio is not a float array of samples.
        """
        melodies = melodies_of(
            self.config, audio, sample_rate, separate=separate, duration=self.max_duration
        )
        return melodies.chroma_at(0.0)[0]

    def lm_logits(
        self, codes: jax.Array | np.ndarray, descriptions: Sequence[str | None]
    ) -> jax.Array:
        """Teacher-forced logits of the codes, without guidance (audiocraft: compute_predictions).

        Args:
          codes: int [B, K, T].
          descriptions: B texts, None or "" for none.

        Returns:
          float32 [B, K, T, V]: at frame t of codebook k the logits that predict `codes[:, k, t]`
          from everything before it in the delay pattern. As in audiocraft the last delays[k]
          frames of codebook k are NaN: their steps are beyond the end of the sequence.

        Raises:
          UserError: these are not codes of this model, or `descriptions` does not fit them.
        """
        texts = check_descriptions(descriptions)
        checked = match_batch(check_codes(self.config, codes, "codes"), len(texts))
        return scoring.lm_logits(self.lm, checked, text_condition(self.parts, texts))

    # --- From text to music -------------------------------------------------------------------

    def generate(
        self,
        descriptions: Sequence[str | None],
        *,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = _DEFAULT.use_sampling,
        top_k: int = _DEFAULT.top_k,
        top_p: float = _DEFAULT.top_p,
        temperature: float = _DEFAULT.temperature,
        cfg_coef: float = _DEFAULT.cfg_coef,
        progress: Progress = False,
        prompt_codes: jax.Array | np.ndarray | None = None,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike[str] | None = None,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
        slots: int | None = None,
        negative_descriptions: Sequence[str | None] | None = None,
        schedule: Sequence[CueLike] = (),
    ) -> GenerationOutput:
        """Generates one clip per description.

        Args:
          descriptions: B texts; None or "" asks for music without a description.
          duration: seconds, including the prompt; up to a day. A piece longer than `max_duration`
            is generated window by window, see `musicgen_jax.generation.windows`.
          seed: an integer, or one per clip. Clip i depends only on its text, the seed and i, not
            on the batch; a clip with its own seed is identical to that seed run alone.
          use_sampling: False takes the most likely token at every step.
          top_k: sample among the k most likely tokens; 0 for all.
          top_p: sample among the most likely tokens whose probability together reaches `top_p`; 0
            for all. If both are set, both apply.
          temperature: above 1 more adventurous, below 1 more predictable; 0 means no sampling.
          cfg_coef: strength of guidance, how closely to follow the description; 1 for none.
          progress: True for a progress bar, or a function called with (steps done, total steps).
          prompt_codes: int [B, K, Tp] or [1, K, Tp], codes to continue; see `encode`.
          extend_stride: seconds between the starts of two windows, for pieces longer than
            `max_duration`; must be less than `max_duration`. A smaller stride keeps more context
            and takes longer. Default: 3/5 of `max_duration`, the official models' 18 s of 30.
          join: how windows are joined. "hard": as in audiocraft, all codes are decoded as one row;
            "crossfade": each window regenerates the last second of the one before, and the two
            versions are crossfaded. See `musicgen_jax.generation.joins`.
          checkpoint: a folder that keeps every finished window. If it already holds part of this
            generation, generation resumes from there; the result is the same bit for bit.
          on_audio: called with each stretch of audio, float32 [B, C, n], as soon as it is final;
            the result then holds no audio. Memory does not grow with the duration.
          chunk_seconds: length of each such stretch; it comes while the language model still runs.
            Default: one stretch after every window, which is fastest.
          slots: None: the clips begin together, in the program that is fastest for this call. N:
            each clip is made by the server's program of N slots, whatever the other clips are.
            `program` of the result says which one it was; see docs/the-same-music.md.
          negative_descriptions: B texts that the music moves away from; None or "" for none.
            Guidance compares with them instead of with no text:
            `negative + (description - negative) * cfg_coef`. Under double guidance they replace the
            last of the three sides.
          schedule: what changes while all clips play: pairs (seconds, description), or values of
            `Cue`, in order. A description holds from its frame on until the next; `descriptions`
            hold before the first. In a melody or style model the text comes before the tokens, so a
            new one takes effect with the next window. `schedule` of the result has the seconds at
            which the cues took effect.

        Returns:
          T = int(duration * frame_rate) frames of music, including the prompt.

        Raises:
          UserError: an argument is out of range; the message names it.
        """
        request = Request(
            config=self.config,
            descriptions=descriptions,
            duration=duration,
            seed=seed,
            sampling=Sampling(use_sampling, top_k, top_p, temperature, cfg_coef),
            prompt_codes=prompt_codes,
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            chunk_seconds=chunk_seconds,
            negative_descriptions=negative_descriptions,
            schedule=schedule,
        )
        return self._make(request, _text, slots=slots, progress=progress, on_audio=on_audio)

    def stream(
        self,
        descriptions: Sequence[str | None],
        *,
        chunk_seconds: float = 1.0,
        duration: float | None = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = _DEFAULT.use_sampling,
        top_k: int = _DEFAULT.top_k,
        top_p: float = _DEFAULT.top_p,
        temperature: float = _DEFAULT.temperature,
        cfg_coef: float = _DEFAULT.cfg_coef,
        progress: Progress = False,
        prompt_codes: jax.Array | np.ndarray | None = None,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike[str] | None = None,
        slots: int | None = None,
        negative_descriptions: Sequence[str | None] | None = None,
        schedule: Sequence[CueLike] = (),
    ) -> Session:
        """Generates as `generate` does, and yields audio while the language model still runs.

        To stream with a melody, a style or an audio prompt, pass `on_audio` to the methods for
        those.

        The arguments not listed here are those of `generate`.

        Args:
          descriptions: B texts; None or "" asks for music without a description.
          chunk_seconds: length of a stretch. The first one comes when the language model is that
            far into the piece, plus a few frames.
          duration: seconds; None for music without an end, in bounded memory.

        Returns:
          An iterator of float32 [B, C, n]; concatenated they are the audio of `generate` up to
          rounding. Arguments are checked at once, before the first stretch is asked for. The
          iterator can be steered and closed, see `Session`.

        Raises:
          UserError: as `generate`.
        """
        if chunk_seconds is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise UserError("chunk_seconds must be a number of seconds, got None")
        request = Request(
            config=self.config,
            descriptions=descriptions,
            duration=duration,
            seed=seed,
            sampling=Sampling(use_sampling, top_k, top_p, temperature, cfg_coef),
            prompt_codes=prompt_codes,
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            chunk_seconds=chunk_seconds,
            negative_descriptions=negative_descriptions,
            schedule=schedule,
        )
        if request.endless and progress:
            raise UserError("progress is for music with an end, not for duration None")
        if slots is None:
            piece = Piece(self.parts, request, text_alone(self.parts))
            audio = piece.audio
        else:
            piece = SlotPiece(self.parts, request, _text, slots=slots)
            audio = piece.stretches

        def chunks() -> Iterator[np.ndarray]:
            with progress_callback(progress) as callback:
                yield from audio(callback)

        return Session(chunks(), piece)

    def generate_unconditional(
        self,
        num_samples: int = 1,
        *,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = _DEFAULT.use_sampling,
        top_k: int = _DEFAULT.top_k,
        top_p: float = _DEFAULT.top_p,
        temperature: float = _DEFAULT.temperature,
        cfg_coef: float = _DEFAULT.cfg_coef,
        progress: Progress = False,
        prompt_codes: jax.Array | np.ndarray | None = None,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike[str] | None = None,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
        slots: int | None = None,
        negative_descriptions: Sequence[str | None] | None = None,
        schedule: Sequence[CueLike] = (),
    ) -> GenerationOutput:
        """Generates `num_samples` clips without a description.

        The arguments not listed here are those of `generate`.

        Args:
          num_samples: B.

        Raises:
          UserError: as `generate`.
        """
        if not is_int(num_samples) or num_samples < 1:
            raise UserError(f"num_samples must be a positive integer, got {num_samples!r}")
        return self.generate(
            [None] * num_samples,
            duration=duration,
            seed=seed,
            use_sampling=use_sampling,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            cfg_coef=cfg_coef,
            progress=progress,
            prompt_codes=prompt_codes,
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            on_audio=on_audio,
            chunk_seconds=chunk_seconds,
            slots=slots,
            negative_descriptions=negative_descriptions,
            schedule=schedule,
        )

    # --- From audio to music ------------------------------------------------------------------

    def generate_continuation(
        self,
        prompt: Audio,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        *,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = _DEFAULT.use_sampling,
        top_k: int = _DEFAULT.top_k,
        top_p: float = _DEFAULT.top_p,
        temperature: float = _DEFAULT.temperature,
        cfg_coef: float = _DEFAULT.cfg_coef,
        progress: Progress = False,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike[str] | None = None,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
        slots: int | None = None,
        negative_descriptions: Sequence[str | None] | None = None,
        schedule: Sequence[CueLike] = (),
    ) -> GenerationOutput:
        """Continues audio. The output begins with the prompt, as the codec reconstructs it.

        The arguments not listed here are those of `generate`.

        Args:
          prompt: float [C, W] or [B, C, W], B being 1 or the number of descriptions. Another
            sample rate is resampled. More channels than the model's are averaged into mono, and
            mono is copied to both channels of a stereo model.
          prompt_sample_rate: samples per second of `prompt`.
          descriptions: B texts. Default: no description for any clip.
          duration: seconds of the output, including the prompt; longer than the prompt.

        Raises:
          UserError: the prompt is not audio, is silent or is too long, or as `generate`.
        """
        audio = check_audio(prompt, prompt_sample_rate, "prompt")
        request = Request(
            config=self.config,
            descriptions=[None] * len(audio) if descriptions is None else descriptions,
            duration=duration,
            seed=seed,
            sampling=Sampling(use_sampling, top_k, top_p, temperature, cfg_coef),
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            chunk_seconds=chunk_seconds,
            negative_descriptions=negative_descriptions,
            schedule=schedule,
        )
        request = continuing(self.parts, request, audio, prompt_sample_rate)
        return self._make(request, _text, slots=slots, progress=progress, on_audio=on_audio)

    def generate_with_chroma(
        self,
        descriptions: Sequence[str | None],
        melody: Clips,
        melody_sample_rate: int,
        *,
        separate: bool | None = None,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = _DEFAULT.use_sampling,
        top_k: int = _DEFAULT.top_k,
        top_p: float = _DEFAULT.top_p,
        temperature: float = _DEFAULT.temperature,
        cfg_coef: float = _DEFAULT.cfg_coef,
        cfg_coef_beta: float | None = _DEFAULT.cfg_coef_beta,
        progress: Progress = False,
        prompt_codes: jax.Array | np.ndarray | None = None,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike[str] | None = None,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
        slots: int | None = None,
        negative_descriptions: Sequence[str | None] | None = None,
        schedule: Sequence[CueLike] = (),
    ) -> GenerationOutput:
        """Generates music that follows a description and the melody of some audio.

        Only the chroma of the audio is used: which of the twelve pitch classes is loudest, at 235
        moments of an official model's window of 30 s. A shorter melody repeats. Of a longer one
        the beginning is used; in a piece longer than `max_duration` each window takes the melody
        from where the window begins, and the melody wraps. Hours of audio cost no more than the
        part that is used. Silence counts as a C, and so does "no melody".

        The arguments not listed here are those of `generate`.

        Args:
          descriptions: B texts; None or "" asks for music without a description.
          melody: float [C, W] or [1, C, W] for all clips, [B, C, W], or a list with one array
            [C, W] or None (no melody) per clip; of any length. Clips are independent.
          melody_sample_rate: samples per second of `melody`, any.
          separate: True: remove drums and bass first, as the original does, with the converted
            separator `htdemucs`; False: use the audio as it is; None: separate if that separator
            is installed, otherwise say so once through the logger `musicgen_jax`.
          cfg_coef_beta: strength of the text against the melody, see `generate_with_style`.

        Raises:
          UserError: this model takes no melody, the melody is not audio, or as `generate`.
        """
        request = Request(
            config=self.config,
            descriptions=descriptions,
            duration=duration,
            seed=seed,
            sampling=Sampling(use_sampling, top_k, top_p, temperature, cfg_coef, cfg_coef_beta),
            prompt_codes=prompt_codes,
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            chunk_seconds=chunk_seconds,
            negative_descriptions=negative_descriptions,
            schedule=schedule,
        )

        seconds = request.seconds
        melodies = melodies_of(
            self.config, melody, melody_sample_rate, separate=separate, duration=seconds
        )
        request = request.following(melodies.digest)

        def conditions(parts: loading.Parts, request: Request, rows: slice) -> ConditionAt:
            return melody_conditions(parts, request.batch, melodies, rows)

        return self._make(request, conditions, slots=slots, progress=progress, on_audio=on_audio)

    def generate_with_style(
        self,
        descriptions: Sequence[str | None] | None,
        style: Clips,
        style_sample_rate: int,
        *,
        eval_q: int = DEFAULT_EVAL_Q,
        excerpt_length: float = DEFAULT_EXCERPT,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        use_sampling: bool = _DEFAULT.use_sampling,
        top_k: int = _DEFAULT.top_k,
        top_p: float = _DEFAULT.top_p,
        temperature: float = _DEFAULT.temperature,
        cfg_coef: float = _DEFAULT.cfg_coef,
        cfg_coef_beta: float | None = _DEFAULT.cfg_coef_beta,
        progress: Progress = False,
        prompt_codes: jax.Array | np.ndarray | None = None,
        extend_stride: float | None = None,
        join: str = "hard",
        checkpoint: str | os.PathLike[str] | None = None,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
        slots: int | None = None,
        negative_descriptions: Sequence[str | None] | None = None,
        schedule: Sequence[CueLike] = (),
    ) -> GenerationOutput:
        """Generates music that follows a description, in the style of some audio.

        One short excerpt of the audio is used. The clip's seed decides where the excerpt begins,
        anew in every window of a piece longer than `max_duration`; to choose the excerpt yourself,
        give audio that is exactly that long. Silence is a style like any other; None means no
        style.

        The arguments not listed here are those of `generate`.

        Args:
          descriptions: B texts, None or "" for a clip that only the style shapes. None: no
            description for any clip.
          style: float [C, W] or [1, C, W] for all clips, [B, C, W], or a list with one array
            [C, W] or None (no style) per clip; at least as long as the excerpt. Clips are
            independent.
          style_sample_rate: samples per second of `style`, any.
          eval_q: codebooks that describe the style, 1 to 6 in the official model: the fewer, the
            freer the music.
          excerpt_length: seconds; the official model was trained with 1.5 to 4.5.
          cfg_coef_beta: strength of the text against a style (double guidance, which takes half as
            long again). If there is both a text and a style, audiocraft advises 5, within 1 to 9;
            otherwise None, which is ordinary guidance, under which a style drowns out the text.

        Raises:
          UserError: this model takes no style, the style is not audio or is shorter than the
            excerpt, or as `generate`.
        """
        if descriptions is None:
            descriptions = [None] * len(check_clips(style, style_sample_rate, "style"))
        request = Request(
            config=self.config,
            descriptions=descriptions,
            duration=duration,
            seed=seed,
            sampling=Sampling(use_sampling, top_k, top_p, temperature, cfg_coef, cfg_coef_beta),
            prompt_codes=prompt_codes,
            extend_stride=extend_stride,
            join=join,
            checkpoint=checkpoint,
            chunk_seconds=chunk_seconds,
            negative_descriptions=negative_descriptions,
            schedule=schedule,
        )

        request = request.following(partial(style_digest, style, style_sample_rate))

        def conditions(parts: loading.Parts, request: Request, rows: slice) -> ConditionAt:
            return style_conditions(
                parts,
                request.batch,
                rows_of(style, rows),
                style_sample_rate,
                eval_q=eval_q,
                excerpt_length=excerpt_length,
                duration=request.seconds,
                keys=request.keys,
            )

        return self._make(request, conditions, slots=slots, progress=progress, on_audio=on_audio)

    def _make(
        self,
        request: Request,
        conditions: Conditions,
        *,
        slots: int | None,
        progress: Progress,
        on_audio: OnAudio | None,
    ) -> GenerationOutput:
        """Generates all clips together, or each in a slot."""
        if request.endless:
            raise UserError("duration must be a number of seconds: only stream has no end")
        if slots is None:
            condition_at = conditions(self.parts, request, slice(None))
            return generate_piece(
                self.parts, request, condition_at, progress=progress, on_audio=on_audio
            )
        return generate_in_slots(
            self.parts, request, conditions, slots=slots, progress=progress, on_audio=on_audio
        )


def _text(parts: loading.Parts, request: Request, rows: slice) -> ConditionAt:
    return text_alone(parts)
