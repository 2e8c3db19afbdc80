"""Music while it is made: an iterator of audio that can be steered."""

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.generation.schedule import Cue


class Steered(Protocol):
    """A piece that is being made: `piece.Piece`, or `slot_piece.SlotPiece`."""

    @property
    def schedule(self) -> tuple[Cue, ...]:
        """See `Session.schedule`."""
        ...

    def steer(self, cue: Cue) -> float:
        """Adds a cue at the next frame that is not drawn; returns that frame's second."""
        ...


class Session:
    """The result of `MusicGen.stream`: an iterator of float32 [B, C, n] that can be steered.

    For example::

        with model.stream(["calm piano"], duration=None) as session:
            for audio in session:
                play(audio)
                if wanted:
                    session.steer(description="drums enter", temperature=0.9)

    Leaving the `with` statement, or `close`, ends the music. All methods may be called from any
    thread; `steer` waits for a chunk that is being made.
    """

    def __init__(self, audio: Iterator[np.ndarray], piece: Steered):
        self._audio, self._piece = audio, piece
        self._lock = threading.Lock()
        self._closed = False

    def __iter__(self) -> "Session":
        return self

    def __next__(self) -> np.ndarray:
        with self._lock:
            return next(self._audio)

    def steer(
        self,
        *,
        description: str | None = None,
        negative_description: str | None = None,
        cfg_coef: float | None = None,
        temperature: float | None = None,
    ) -> float:
        """Changes the music from the next frame that is not drawn yet.

        A setting that is None stays as it is. In Meta's melody and style models the text comes
        before the tokens, so a new text takes effect with the next window.

        Args:
          description: of all clips from then on; "" for none.
          negative_description: what all clips move away from; "" for nothing.
          cfg_coef: strength of guidance.
          temperature: as in `generate`.

        Returns:
          the second of the piece at which the change takes effect; if there is a text, that of the
          text.

        Raises:
          UserError: a value is out of range, no setting is given, or the change can no longer take
            effect.
        """
        cue = Cue(0.0, description, negative_description, cfg_coef, temperature)
        with self._lock:
            if self._closed:
                raise UserError("the music was stopped: there is nothing left to change")
            return self._piece.steer(cue)

    @property
    def schedule(self) -> tuple[Cue, ...]:
        """All changes so far and those to come, each at the second where it takes effect.

        Given in advance as `schedule`, with the same other arguments, they make the same tokens.
        """
        return self._piece.schedule

    def close(self) -> None:
        """Stops the music."""
        with self._lock:
            self._closed = True
            self._audio.close()  # type: ignore[attr-defined]

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
