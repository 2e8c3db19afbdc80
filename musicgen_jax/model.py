"""MusicGen: text -> tokenizer -> T5 -> condition -> LM over delayed codebooks -> codes -> EnCodec.

This file owns the parts and names the pipeline; the mathematics is in the parts.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from musicgen_jax import arguments, checkpoint, compile_cache, hub, lm, lora, sharding
from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning.chroma import ChromaConditioner
from musicgen_jax.conditioning.condition import Condition
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.conditioning.style import DEFAULT_EVAL_Q, DEFAULT_EXCERPT, StyleConditioner
from musicgen_jax.conditioning.text import TextConditioner
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.encodec import Encodec
from musicgen_jax.errors import UserError
from musicgen_jax.generate import example_keys
from musicgen_jax.lm import LM
from musicgen_jax.melody import Audio, Melodies, check_melodies, chroma_frames
from musicgen_jax.mert import Mert
from musicgen_jax.piece import DEFAULT_DURATION, Piece, check_codes, check_prompt, num_frames
from musicgen_jax.progress import Progress, progress_callback
from musicgen_jax.shapes import module_shapes
from musicgen_jax.style import Styles, check_eval_q, check_styles
from musicgen_jax.t5 import T5Encoder
from musicgen_jax.tokenizer import Tokenizer
from musicgen_jax.transformer import cache_groups
from musicgen_jax.windows import assemble

Part = TypeVar("Part", bound=nnx.Module)
OnAudio = Callable[[np.ndarray], object]
TextToTokens = Callable[[Sequence[str | None]], tuple[np.ndarray, np.ndarray]]

_SHORTEST_TEXT = 16  # prompts of up to so many tokens share one compilation
_SILENCE = 1e-4  # a prompt whose peak stays below -80 dBFS holds nothing to continue


@dataclasses.dataclass(frozen=True)
class GenerationOutput:
    """Generated music, on the host.

    Attributes:
      audio: float32 [B, C, W], the codec's own output: it may exceed 1 in places. Loudness and
        clipping belong to saving, see `musicgen_jax.audio`.
      codes: int32 [B, K, T], what the language model wrote.
      sample_rate: samples per second and channel.
    """

    audio: np.ndarray
    codes: np.ndarray
    sample_rate: int


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
        tokenizer: TextToTokens,
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
            with the extra `[hub]`, into the folder `musicgen_jax.hub.models_home()`.
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
        loaded = {name: lora.load(path, config.lm) for name, path in (adapters or {}).items()}
        tokenizer = Tokenizer(folder / checkpoint.TOKENIZER)
        weights = partial(checkpoint.load_params, folder)
        types = {"dtype": dtype, "cache_dtype": cache_dtype}
        model = cls.build(config, weights, tokenizer, **types, mesh=mesh)
        model.adapters = loaded

        def float_lm() -> dict:
            abstract = nnx.eval_shape(lambda: LM(config.lm, rngs=nnx.Rngs(0)))
            return weights("lm", nnx.to_pure_dict(nnx.state(abstract, nnx.Param)))

        model._float_lm = float_lm
        return model

    @classmethod
    def build(
        cls,
        config: MusicGenConfig,
        weights: Callable[[str, dict], dict],
        tokenizer: TextToTokens,
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
        dtype, param_dtype = arguments.lm_dtypes(dtype)
        types = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "cache_dtype": arguments.cache_dtype(cache_dtype),
            "cache_groups": cache_groups(
                config.lm.num_heads, 1 if mesh is None else mesh.shape[sharding.MODEL]
            ),
        }

        def fill(component: str, module: Callable[..., Part]) -> Part:
            graphdef, state = nnx.split(module_shapes(module))
            sizes = getattr(config, component)
            abstract = sharding.as_stored(component, sizes, nnx.to_pure_dict(state), mesh)
            params = sharding.arrange(component, sizes, weights(component, abstract), mesh)
            nnx.replace_by_pure_dict(state, params)
            return nnx.merge(graphdef, state)

        return cls(
            config,
            fill("t5", partial(T5Encoder, config.t5)),
            fill("lm", partial(LM, config.lm, **types)),
            fill("encodec", partial(Encodec, config.encodec)),
            tokenizer,
            fill("mert", partial(Mert, config.mert)) if config.mert else None,
        )

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
        total: dict[tuple[str, ...], np.ndarray] = {}
        for name, strength in chosen.items():
            if name not in self.adapters:
                known = ", ".join(self.adapters) or "none were loaded"
                raise UserError(f"no adapter {name!r}: there is {known}")
            if not math.isfinite(strength):
                raise UserError(f"the scale of adapter {name!r} must be a number, got {strength}")
            for path, change in lora.changes(self.adapters[name], strength).items():
                total[path] = total[path] + change if path in total else change
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
            is generated window by window, see `musicgen_jax.windows`.
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
            are faded into each other. See `musicgen_jax.joins`.
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
        return self._generate(
            texts,
            self._text_only(texts),
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
            self._text_only(texts),
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
        if not arguments.is_int(num_samples) or num_samples < 1:
            raise UserError(f"num_samples must be a positive integer, got {num_samples!r}")
        return self.generate([None] * num_samples, **settings)

    def generate_continuation(
        self,
        prompt: np.ndarray | jax.Array,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        *,
        duration: float = DEFAULT_DURATION,
        **settings,
    ) -> GenerationOutput:
        """Continues audio. The output begins with the prompt, as the codec reconstructs it.

        Args:
          prompt: float [C, W] or [B, C, W], B being 1 or the number of descriptions. Another
            sample rate is resampled; more channels than the model's are averaged into mono, and
            mono is copied to both of a stereo model's.
          prompt_sample_rate: samples per second of `prompt`.
          descriptions: B texts; by default none for any clip.
          duration: seconds of the output, the prompt included; longer than the prompt.
          **settings: the other keyword arguments of `generate`.

        Raises:
          UserError: the prompt is no audio, silent or too long, or as `generate`.
        """
        audio = arguments.check_audio(prompt, prompt_sample_rate, "prompt")
        if np.abs(audio).max() < _SILENCE:
            raise UserError("the prompt is silent: there is nothing to continue")
        texts = arguments.check_descriptions(
            [None] * len(audio) if descriptions is None else descriptions
        )
        # Before the codec runs: a song of ten minutes would first fill the memory.
        frames = math.ceil(audio.shape[2] / prompt_sample_rate * self.frame_rate - 1e-6)
        check_prompt(self.config, frames, num_frames(self.config, duration))
        codes = self.encode(audio, prompt_sample_rate)
        return self.generate(texts, duration=duration, prompt_codes=codes, **settings)

    def generate_with_chroma(
        self,
        descriptions: Sequence[str | None],
        melody: Audio | Sequence[Audio | None],
        melody_sample_rate: int,
        *,
        separate: bool | None = None,
        duration: float = DEFAULT_DURATION,
        **settings,
    ) -> GenerationOutput:
        """Generates music that follows the melody of given audio, and a description.

        Of the audio only its chroma is used: which of the twelve pitch classes is the loudest, at
        235 moments of the 30 s that an official model sees at once. A shorter melody repeats, of a
        longer one the beginning counts; in a piece longer than `max_duration` the melody moves on
        with the windows, and wraps. What is not needed is not looked at: hours of audio cost no
        more than the beginning. Silence is a melody of C, which is also what stands for none.

        Args:
          descriptions: B texts; None or "" asks for music without a description.
          melody: float [C, W] or [1, C, W] for all clips, [B, C, W], or a list with one array
            [C, W] or None (no melody) per clip; of any length. Clips do not touch each other.
          melody_sample_rate: samples per second of `melody`, any.
          separate: True: take drums and bass away first, as the original does, with the converted
            separator `htdemucs`; False: hear the audio as it is; None: separate if that separator
            is at hand, else say so once through the logger `musicgen_jax`.
          duration: seconds, as in `generate`.
          **settings: the other keyword arguments of `generate`.

        Raises:
          UserError: this model takes no melody, the melody is no audio, or as `generate`.
        """
        texts = arguments.check_descriptions(descriptions)
        num_frames(self.config, duration)
        condition_at = self._with_melody(texts, melody, melody_sample_rate, separate, duration)
        return self._generate(texts, condition_at, duration=duration, **settings)

    def generate_with_style(
        self,
        descriptions: Sequence[str | None] | None,
        style: Audio | Sequence[Audio | None],
        style_sample_rate: int,
        *,
        eval_q: int = DEFAULT_EVAL_Q,
        excerpt_length: float = DEFAULT_EXCERPT,
        cfg_coef: float = 3.0,
        cfg_coef_beta: float | None = None,
        duration: float = DEFAULT_DURATION,
        seed: int | Sequence[int] = 0,
        **settings,
    ) -> GenerationOutput:
        """Generates music in the style of given audio, and after a description.

        Of the audio one short excerpt is heard. Where it begins is drawn by the seed of the clip,
        anew in every window of a piece longer than `max_duration`; to choose it yourself, give
        audio that is as long as the excerpt. Silence is a style like any other and does not stand
        for none, which is None.

        Args:
          descriptions: B texts, None or "" for a clip that only the style shapes; by default none
            for any clip.
          style: float [C, W] or [1, C, W] for all clips, [B, C, W], or a list with one array
            [C, W] or None (no style) per clip; at least as long as the excerpt. Clips do not touch
            each other.
          style_sample_rate: samples per second of `style`, any.
          eval_q: codebooks that describe the style, 1 to 6 in the official model: the fewer, the
            freer the music.
          excerpt_length: seconds; the official model was trained with 1.5 to 4.5.
          cfg_coef: strength of guidance, as in `generate`.
          cfg_coef_beta: strength of the text beside a style (double guidance, which takes half as
            long again). audiocraft advises 5 where both are given, within 1 to 9, and otherwise
            None: ordinary guidance, under which a style drowns the text.
          duration: seconds, as in `generate`.
          seed: as in `generate`.
          **settings: the other keyword arguments of `generate`.

        Raises:
          UserError: this model takes no style, the style is no audio or shorter than the excerpt,
            or as `generate`.
        """
        if descriptions is None:
            clips = arguments.check_clips(style, style_sample_rate, "style")
            descriptions = [None] * len(clips)
        texts = arguments.check_descriptions(descriptions)
        num_frames(self.config, duration)
        return self._generate(
            texts,
            self._with_style(
                texts, style, style_sample_rate, eval_q, excerpt_length, duration, seed
            ),
            duration=duration,
            seed=seed,
            cfg_coef=cfg_coef,
            cfg_coef_beta=cfg_coef_beta,
            **settings,
        )

    # --- The core that everything above goes through -----------------------------------------

    def _text_only(self, texts: Sequence[str | None]) -> Callable[[float], Condition]:
        """The condition of every window where nothing but text conditions; made once, when due."""
        condition = functools.cache(lambda: self.text_condition(texts))
        return lambda offset: condition()

    def _with_melody(
        self,
        texts: Sequence[str | None],
        melody: Audio | Sequence[Audio | None],
        sample_rate: int,
        separate: bool | None,
        duration: float,
    ) -> Callable[[float], Condition]:
        """The condition of every window: the text once, the melody as it moves on."""
        melodies = self._melodies(melody, sample_rate, separate, duration)
        if len(melodies) not in (1, len(texts)):
            raise UserError(
                f"{len(melodies)} melodies for {len(texts)} descriptions: give one for each, or "
                "one for all"
            )
        text = functools.cache(lambda: self.text_condition(texts))

        def condition_at(offset: float) -> Condition:
            return _melody_condition(
                self.lm.chroma_conditioner, text(), *melodies.chroma_at(offset)
            )

        return condition_at

    def _melodies(
        self,
        melody: Audio | Sequence[Audio | None],
        sample_rate: int,
        separate: bool | None,
        duration: float,
    ) -> Melodies:
        if not self.config.lm.chroma_bins:
            raise UserError(
                f"{self.name or 'this model'} takes no melody: use a melody model, such as "
                "facebook/musicgen-melody"
            )
        clips = check_melodies(melody, sample_rate, seconds=duration + self.max_duration)
        return Melodies(
            clips, int(sample_rate), config=self.config, duration=duration, separate=separate
        )

    def _with_style(
        self,
        texts: Sequence[str | None],
        style: Audio | Sequence[Audio | None],
        sample_rate: int,
        eval_q: int,
        excerpt_length: float,
        duration: float,
        seed: int | Sequence[int],
    ) -> Callable[[float], Condition]:
        """The condition of every window: the text once, an excerpt of the style for each."""
        if self.config.lm.style is None:
            raise UserError(
                f"{self.name or 'this model'} takes no style: use facebook/musicgen-style"
            )
        check_eval_q(eval_q, self.config.lm.style.n_q)
        styles = Styles(
            check_styles(style, sample_rate, len(texts)),
            int(sample_rate),
            config=self.config,
            keys=example_keys(arguments.check_seed(seed, len(texts)), len(texts)),
            duration=duration,
            excerpt_length=excerpt_length,
        )
        if not styles.given.any():
            return self._text_only(texts)
        text = functools.cache(lambda: self.text_condition(texts))

        def condition_at(offset: float) -> Condition:
            assert self.mert is not None
            excerpts = styles.excerpts_at(offset)
            stage = partial(_style_features, self.mert, sample_rate=self.sample_rate)
            features = sharding.by_rows(self.mesh, stage, excerpts)
            return _style_condition(
                self.lm.style_conditioner, text(), features, styles.given, eval_q=eval_q
            )

        return condition_at

    def _generate(
        self,
        texts: Sequence[str | None],
        condition_at: Callable[[float], Condition],
        *,
        progress: Progress = False,
        on_audio: OnAudio | None = None,
        chunk_seconds: float | None = None,
        **settings,
    ) -> GenerationOutput:
        """Generates under any condition.

        Args:
          texts: B checked descriptions.
          condition_at: see `piece.Piece`.
          progress: as in `generate`.
          on_audio: as in `generate`.
          chunk_seconds: as in `generate`.
          **settings: the other arguments of `piece.Piece`.
        """
        parts = (self.lm, self.encodec, self.config)
        piece = Piece(*parts, texts, condition_at, chunk_seconds=chunk_seconds, **settings)
        with progress_callback(progress) as callback:
            if len(piece.windows) == 1 and on_audio is None:
                codes = assemble(piece.codes(callback))
                audio = np.asarray(self.decode(codes))
            else:
                stretches = [np.zeros((len(texts), self.audio_channels, 0), np.float32)]
                for stretch in piece.audio(callback):
                    (on_audio or stretches.append)(stretch)
                codes, audio = assemble(piece.done), np.concatenate(stretches, axis=2)
        return GenerationOutput(audio=audio, codes=codes, sample_rate=self.sample_rate)

    # --- The stages, each callable alone -----------------------------------------------------

    def text_condition(self, descriptions: Sequence[str | None]) -> Condition:
        """What the language model is told: B rows; null rows where there is no text.

        Texts are padded to a power of two, so that prompts of similar length share one
        compilation. Padding is masked and never attended: it does not change a row.
        """
        ids, mask = self.tokenizer(descriptions)
        longest = ids.shape[1]
        padding = max(_SHORTEST_TEXT, 1 << (longest - 1).bit_length()) - longest
        ids, mask = (np.pad(x, ((0, 0), (0, padding))) for x in (ids, mask))
        if mask.any():
            stage = partial(_text_condition, self.t5, self.lm.text_conditioner)
            condition = sharding.by_rows(self.mesh, stage, ids, mask)
        else:  # nothing to encode: spares the text encoder and its compilation
            cross = jnp.zeros((*mask.shape, self.config.lm.dim), self.lm.dtype)
            condition = Condition(cross=cross, cross_mask=jnp.asarray(mask))
        if not self.config.lm.chroma_bins:
            return condition
        absent = jnp.zeros((len(mask), chroma_frames(self.config)), bool)
        prefix = jnp.zeros((*absent.shape, self.config.lm.dim), self.lm.dtype)
        return dataclasses.replace(condition, prefix=prefix, prefix_mask=absent)

    def chroma(self, audio: Audio, sample_rate: int, *, separate: bool | None = None) -> np.ndarray:
        """What a melody model hears of audio: the loudest pitch class, moment by moment.

        Args:
          audio: float [C, W] or [B, C, W], as in `generate_with_chroma`.
          sample_rate: of `audio`, in samples per second.
          separate: see `generate_with_chroma`.

        Returns:
          float32 [1 or B, T, 12], one-hot, beginning with C; T frames span `max_duration`.
        """
        melodies = self._melodies(audio, sample_rate, separate, self.max_duration)
        return melodies.chroma_at(0.0)[0]

    def style_condition(
        self,
        descriptions: Sequence[str | None],
        style: Audio | Sequence[Audio | None],
        style_sample_rate: int,
        *,
        eval_q: int = DEFAULT_EVAL_Q,
        excerpt_length: float = DEFAULT_EXCERPT,
        seed: int | Sequence[int] = 0,
    ) -> Condition:
        """What the language model is told of text and style: B rows.

        The arguments are those of `generate_with_style`, whose excerpts these are in pieces of up
        to `max_duration`.
        """
        texts = arguments.check_descriptions(descriptions)
        return self._with_style(
            texts, style, style_sample_rate, eval_q, excerpt_length, self.max_duration, seed
        )(0.0)

    def lm_logits(
        self, codes: jax.Array | np.ndarray, descriptions: Sequence[str | None]
    ) -> jax.Array:
        """Teacher-forced logits of the codes, without guidance (audiocraft: compute_predictions).

        Args:
          codes: int [B, K, T].
          descriptions: B texts, None or "" for none.

        Returns:
          float32 [B, K, T, V]: at frame t of codebook k the logits that predict `codes[:, k, t]`
          from all that comes before it in the delay pattern. As in audiocraft the last delays[k]
          frames of codebook k are NaN: their steps lie beyond the sequence.
        """
        texts = arguments.check_descriptions(descriptions)
        codes = arguments.match_batch(check_codes(self.config, codes, "codes"), len(texts))
        stage = partial(_lm_logits, self.lm)
        return sharding.by_rows(self.mesh, stage, codes, self.text_condition(texts))

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
        return self._to_codes(
            np.stack([convert_audio(clip, int(sample_rate), *to) for clip in wav])
        )

    def _to_codes(self, wav: np.ndarray) -> jax.Array:
        # The codec is mono: a stereo model's channels are rows of its batch.
        B, C, W = wav.shape
        stage = partial(_codec_encode, self.encodec)
        codes = sharding.by_rows(self.mesh, stage, wav.reshape(B * C, 1, W))
        T = codes.shape[2]
        return codes.reshape(B, C, -1, T).swapaxes(1, 2).reshape(B, -1, T)

    def decode(self, codes: jax.Array | np.ndarray) -> jax.Array:
        """Audio of codes: int [B, K, T] to float32 [B, C, T * hop_length].

        Compiled once per T: the codec's convolutions look ahead and reflect at the true end, so
        padding the codes to a common length would change the last frames.
        """
        codes = check_codes(self.config, codes, "codes")
        (B, _, T), C = codes.shape, self.audio_channels
        rows = codes.reshape(B, -1, C, T).swapaxes(1, 2).reshape(B * C, -1, T)
        stage = partial(_codec_decode, self.encodec)
        return sharding.by_rows(self.mesh, stage, rows).reshape(B, C, -1)


# --- Jitted stages: modules are pytrees, so one compilation serves every model of a shape -------


@jax.jit
def _text_condition(
    t5: T5Encoder, project: TextConditioner, ids: jax.Array, mask: jax.Array
) -> Condition:
    return Condition(cross=project(t5(ids, mask), mask), cross_mask=mask)


@jax.jit
def _melody_condition(
    project: ChromaConditioner, text: Condition, chroma: jax.Array, given: jax.Array
) -> Condition:
    """`chroma` [1 or B, T, bins]; a row of which nothing is `given` [1 or B] stays null."""
    assert text.prefix is not None
    assert text.prefix_mask is not None
    prefix = jnp.where(given[:, None, None], project(chroma), text.prefix)
    mask = text.prefix_mask | given[:, None]
    return dataclasses.replace(text, prefix=prefix, prefix_mask=mask)


@partial(jax.jit, static_argnames="sample_rate")
def _style_features(mert: Mert, excerpts: jax.Array, *, sample_rate: int) -> jax.Array:
    return mert(resample_frac(excerpts, sample_rate, mert.config.sample_rate))


@partial(jax.jit, static_argnames="eval_q")
def _style_condition(
    conditioner: StyleConditioner,
    text: Condition,
    features: jax.Array,
    given: jax.Array,
    *,
    eval_q: int,
) -> Condition:
    """`features` [b, T, E] of those rows that are `given` [B]; the others stay null."""
    tokens = conditioner(features, eval_q)  # [b, P, D]
    row = jnp.maximum(jnp.cumsum(given) - 1, 0)
    prefix = jnp.where(given[:, None, None], tokens[row], 0)
    mask = jnp.broadcast_to(given[:, None], prefix.shape[:2])
    return dataclasses.replace(text, prefix=prefix, prefix_mask=mask)


@jax.jit
def _lm_logits(model: LM, codes: jax.Array, condition: Condition) -> jax.Array:
    return lm.compute_predictions(model, codes, model.fill_nulls(condition))[0]


@jax.jit
def _codec_encode(encodec: Encodec, audio: jax.Array) -> jax.Array:
    return encodec.encode(audio)


@jax.jit
def _codec_decode(encodec: Encodec, codes: jax.Array) -> jax.Array:
    return encodec.decode(codes)
