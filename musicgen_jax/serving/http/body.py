"""Reads the body of a request within bounds of bytes, time and depth; nothing reaches the disk."""

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from musicgen_jax.serving.http import form
from musicgen_jax.serving.http.errors import ClientGone, HTTPError, invalid
from musicgen_jax.serving.http.fields import strict_json
from musicgen_jax.serving.http.settings import Settings


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
      HTTPError: 415 if it is not declared as JSON: a page of another site could send that without
        asking. 413 if it is too large, 408 if it takes too long, 400 if it is not a JSON object.
      ClientGone: the client left before it was whole.
    """
    if (kind := media_type(request)) != "application/json":
        raise HTTPError(415, f"send application/json, not {kind[:60] or 'nothing'}", "media_type")
    return parse(await read_bytes(request, settings.json_bytes, settings.body_seconds))


def media_type(request: Request) -> str:
    """Of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(request: Request, settings: Settings) -> tuple[form.Texts, form.Files]:
    """The texts and the files of a form, each with its name.

    Raises:
      HTTPError: as `read_json`.
      ClientGone: the client left before it was whole.
    """
    body = await read_bytes(request, settings.upload_bytes, settings.body_seconds)
    return await asyncio.to_thread(form.parse, request.headers["content-type"], body)


async def read_bytes(request: Request, limit: int, seconds: float) -> bytes:
    """The body, if it has at most `limit` bytes and arrives within `seconds`."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPError(415, "send the body uncompressed", "content_encoding")
    too_large = HTTPError(413, f"the body has more than {limit} bytes", "body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise HTTPError(
            408,
            f"the body did not arrive within {seconds:g} s",
            "body_too_slow",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)


def parse(body: bytes) -> dict[str, Any]:
    """Strict JSON: an object, no name twice, no NaN."""
    if not body.strip():
        raise invalid("the body is empty: send a JSON object", code="invalid_json")
    try:
        value = strict_json(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"the body is not JSON: {reason[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    return value
