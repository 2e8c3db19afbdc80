# pyright: strict, reportUnknownMemberType=false
"""A codec by itself: audio -> codes -> audio, for any of the EnCodecs.

For a MusicGen folder this is only its codec. The codec of a stereo model is mono; `MusicGen.encode`
and `decode` make it stereo.
"""

import functools
import os
from collections.abc import Iterator

import numpy as np

from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning.audio_input import Audio, check_audio
from musicgen_jax.config import EncodecConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError, is_number
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.segments import (
    decode_segment,
    encode_segment,
    overlap_add,
    segments,
)
from musicgen_jax.storage import checkpoint, hub
from musicgen_jax.storage.codec_file import EncodedAudio
from musicgen_jax.storage.loading import load_encodec

__all__ = ["Codec", "EncodedAudio"]


class Codec:
    """An EnCodec with weights.

    Codecs with segments (48 kHz) need the memory of one segment, however long a clip is. The others
    (24 and 32 kHz) process a clip as a whole, since their LSTMs carry each frame on to all later
    ones: that takes hundreds of megabytes for a minute, and a compilation for each new length.

    Args:
      encodec: the network.
      name: the label of the files that it writes.
    """

    def __init__(self, encodec: Encodec, name: str = ""):
        self.encodec = encodec
        self.name = name

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> "Codec":
        """Loads a codec, in float32.

        Args:
          name_or_path: "nano", the folder of a converted codec or model, or an official name:
            "encodec_24khz", "encodec_32khz", "encodec_48khz" or a model's, converted once as in
            `MusicGen.from_pretrained`.

        Raises:
          UserError: there is no such codec, or it is incomplete.
        """
        folder = hub.find_codec(name_or_path)
        info = checkpoint.load_info(folder)
        config = info.parts.get("encodec")
        if not isinstance(config, EncodecConfig):
            raise UserError(f"{folder} holds no codec, only {', '.join(info.parts)}")
        name = info.config.name if info.config else str(info.source.get("name") or "")
        return cls(load_encodec(folder, config), name)

    @property
    def config(self) -> EncodecConfig:
        """The architecture."""
        return self.encodec.config

    @property
    def sample_rate(self) -> int:
        """Samples per second and channel of the decoded audio."""
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        """C of the decoded audio."""
        return self.config.channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the codebooks: codes only make sense with the codebooks that made them."""
        return self.encodec.quantizer.fingerprint

    def encode(
        self,
        audio: Audio,
        sample_rate: int,
        bandwidth: float | None = None,
        *,
        bar: Bar = plain,
    ) -> EncodedAudio:
        """Codes of audio.

        Args:
          audio: float [C, W] or [B, C, W]; converted to the codec's rate and channels.
          sample_rate: of `audio`, in samples per second.
          bandwidth: the most kilobits per second; fewer codebooks sound coarser. None for all
            codebooks.
          bar: wraps the iteration over the codec's segments; most codecs have one for all audio.

        Raises:
          UserError: the audio is empty or not finite, or the codec has no such bandwidth.
        """
        wav = check_audio(audio, sample_rate, "audio")
        if bandwidth is not None and not is_number(bandwidth):
            raise UserError(f"bandwidth must be a number of kb/s, got {bandwidth!r}")
        try:
            n_q = self.config.num_books(bandwidth)
        except ValueError as error:
            raise UserError(str(error)) from None
        to = self.sample_rate, self.channels
        wav = np.stack([convert_audio(clip, int(sample_rate), *to) for clip in wav])
        codes: list[np.ndarray] = []
        scales: list[np.ndarray] = []  # empty if the codec keeps no levels
        cut = list(segments(self.config, wav.shape[2]))
        for start, width, _ in bar(cut, total=len(cut), desc="encoding", unit="segment"):
            one, *scale = encode_segment(self.encodec, wav[:, :, start : start + width], n_q)
            codes.append(one)
            scales += scale
        return EncodedAudio(
            codes=np.concatenate(codes, axis=2),
            scales=np.stack(scales, axis=1) if scales else None,
            length=wav.shape[2],
            config=self.config,
            codec=self.name,
            fingerprint=self.fingerprint,
        )

    def decode(self, encoded: EncodedAudio, *, bar: Bar = plain) -> np.ndarray:
        """Audio of codes: float32 [B, C, W], as long as the original at the codec's rate.

        Args:
          encoded: the result of `encode`, or the content of a file.
          bar: as in `encode`.

        Raises:
          UserError: the codes were made with another codec.
        """
        if encoded.config != self.config or encoded.fingerprint != self.fingerprint:
            raise UserError(
                f"the codes were made with the codec {encoded.codec!r}, and {self.name!r} is a "
                f"different one: its architecture or its weights differ"
            )
        pieces = self._decode_segments(encoded, bar)
        if self.config.segment_length:
            return np.concatenate([*overlap_add(self.config, encoded.length, pieces)], axis=2)
        (whole,) = pieces
        return whole[..., : encoded.length]

    def _decode_segments(self, encoded: EncodedAudio, bar: Bar) -> Iterator[np.ndarray]:
        start, cut = 0, list(segments(self.config, encoded.length))
        shown = bar(cut, total=len(cut), desc="decoding", unit="segment")
        for i, segment in enumerate(shown):
            codes = encoded.codes[:, :, start : start + segment.frames]
            scale = None if encoded.scales is None else encoded.scales[:, i]
            yield decode_segment(self.encodec, codes, scale)
            start += segment.frames
