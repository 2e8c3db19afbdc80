"""Answers that are audio: whole, streamed, or streamed as events."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from musicgen_jax.audio import clip_settings
from musicgen_jax.audio.encoding import MEDIA_TYPES, Encoder, encode
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level, normalize_audio
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.listener import Listener
from musicgen_jax.serving.ticket import Ticket

_LEAD = 4.0  # seconds of endless music that are sent ahead of the time at which they play


def headers(asked: Asked, ticket: Ticket, model: str) -> dict[str, str]:
    """The settings that make the same music again, without the description."""
    config = asked.request.config
    heard = {"X-Heard": json.dumps(asked.heard)} if asked.heard is not None else {}
    return {
        "X-Seed": str(asked.request.seed),
        "X-Program": str(ticket.program),
        "X-Settings": json.dumps({"model": model, **asked.settings()}),
        "X-Duration": f"{asked.seconds:g}",
        "X-Sample-Rate": str(config.sample_rate),
        "X-Channels": str(config.audio_channels),
        **heard,
        "Content-Disposition": f'inline; filename="music.{suffix(asked.form)}"',
    }


def suffix(form: str) -> str:
    """Of the file's name."""
    return "ogg" if form == "opus" else form


def comment(asked: Asked, ticket: Ticket, model: str) -> str:
    """The comment inside a file: JSON with everything that is needed to make it again."""
    made = {
        "model": model,
        **asked.described(ticket.schedule),
        **asked.settings(),
        "program": str(ticket.program),
    }
    return clip_settings.dump(made)


def whole(asked: Asked, ticket: Ticket, audio: np.ndarray, model: str) -> bytes:
    """The file of a whole clip, float32 [C, W]. Takes a while: call it in a thread."""
    rate = asked.request.config.sample_rate
    level = normalize_audio(audio, rate, asked.strategy, loudness_compressor=True)
    text = comment(asked, ticket, model)
    return encode(asked.form, to_int16(level), rate, comment=text)


async def whole_answer(asked: Asked, listener: Listener, model: str) -> Response:
    """An answer with the whole clip."""
    async with listener:
        output = await listener.result()
        data = await asyncio.to_thread(whole, asked, listener.ticket, output.audio[0], model)
    head = headers(asked, listener.ticket, model)
    return Response(data, 200, head, MEDIA_TYPES[asked.form])


async def encoded(asked: Asked, listener: Listener, model: str) -> AsyncIterator[bytes]:
    """The bytes of a stream as they are made, none of them empty."""
    config = asked.request.config
    encoder = Encoder(
        asked.form,
        config.sample_rate,
        config.audio_channels,
        samples=asked.samples,
        comment=comment(asked, listener.ticket, model),
    )
    begun, sent = time.monotonic(), 0
    async for block in listener.blocks():
        if asked.request.endless:
            # At the pace of listening: a change must not be heard minutes after the request for it.
            ahead = sent / config.sample_rate - (time.monotonic() - begun)
            await asyncio.sleep(max(0.0, ahead - _LEAD))
            block = block[:, : asked.samples - sent]
        sent += block.shape[1]
        samples = to_int16(apply_level(block, "clip", 0.0))
        if data := await asyncio.to_thread(encoder.push, samples):
            yield data
        if asked.request.endless and sent == asked.samples:
            break
    if data := await asyncio.to_thread(encoder.finish):
        yield data


class Streamed(Response):
    """An answer that is sent while it is made.

    The first bytes exist before it begins, so an earlier failure still gets its own status. A later
    failure cuts the connection, so that nobody mistakes half a clip for a whole one.

    Args:
      first: the first bytes.
      rest: all others.
      listener: entered; it is left when the answer has been sent.
      headers: of the answer.
      media_type: of the answer.
    """

    def __init__(
        self,
        first: bytes,
        rest: AsyncIterator[bytes],
        listener: Listener,
        headers: dict[str, str],
        media_type: str,
    ):
        super().__init__(None, 200, {**headers, "X-Accel-Buffering": "no"}, media_type)
        del self.headers["content-length"]
        self._first, self._rest, self._listener = first, rest, listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            part = {"type": "http.response.body", "more_body": True}
            await send({**part, "body": self._first})
            async for data in self._rest:
                await send({**part, "body": data})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._listener.__aexit__(None, None, None)


async def streamed(
    asked: Asked, listener: Listener, model: str, streams: dict[str, Ticket]
) -> Streamed:
    """An answer whose audio is sent while it is made.

    Args:
      asked: what for.
      listener: of the music.
      model: its name.
      streams: has the ticket, by the id in the header X-Stream-Id, while the music is made.
    """
    await listener.__aenter__()
    parts = encoded(asked, listener, model)
    media_type = MEDIA_TYPES[asked.form]
    if asked.events:
        parts, media_type = _events(parts, listener), "text/event-stream"
    try:
        first = await anext(parts)
    except BaseException:
        await listener.__aexit__(None, None, None)
        raise
    for old in [id_ for id_, ticket in streams.items() if ticket.done]:
        del streams[old]
    id_ = f"stream_{secrets.token_urlsafe(18)}"
    streams[id_] = listener.ticket
    head = {**headers(asked, listener.ticket, model), "X-Stream-Id": id_}
    return Streamed(first, parts, listener, head, media_type)


async def _events(parts: AsyncIterator[bytes], listener: Listener) -> AsyncIterator[bytes]:
    """Audio as OpenAI's events of speech."""
    async for data in parts:
        yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    made = listener.ticket.steps[1]
    usage = {"input_tokens": 0, "output_tokens": made, "total_tokens": made}
    yield event({"type": "speech.audio.done", "usage": usage})


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data)}\n\n".encode()
