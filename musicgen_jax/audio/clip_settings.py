"""The settings inside a clip: one JSON object in the comment of its sound file.

Whoever finds the file later can read how it was made, and make it again. The comment is the chunk
LIST/INFO/ICMT of a wav file, and the tag COMMENT of a flac, ogg or mp3 file. It names no path of
the machine.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from musicgen_jax.audio.files import opened
from musicgen_jax.errors import user_error

MAX_BYTES = 1 << 15
_MOST_CHUNKS = 100
_OURS = ("model", "prompt", "program")  # every clip of ours names them


def dump(settings: Mapping[str, Any]) -> str:
    """The comment for settings.

    Args:
      settings: plain JSON types, with "model", "prompt" and "program". A prompt that would not fit
        is cut, and "prompt_characters" then says how long it was; so is a "negative_prompt". If a
        "schedule" would not fit, "schedule_cues" says how many cues it had.
    """
    text = json.dumps(settings)
    if len(text) > MAX_BYTES and len(json.dumps(settings.get("schedule"))) > MAX_BYTES // 2:
        settings = {**settings, "schedule_cues": len(settings["schedule"])}
        del settings["schedule"]
        text = json.dumps(settings)
    for name in ("negative_prompt", "prompt"):
        whole = settings.get(name)
        if len(text) <= MAX_BYTES or not isinstance(whole, str):
            continue
        room = (MAX_BYTES - (len(text) - len(json.dumps(whole)))) // 12 - 6  # an emoji: 12 bytes
        cut = {name: whole[: max(room, 0)], f"{name}_characters": len(whole)}
        settings = {**settings, **cut}
        text = json.dumps(settings)
    return text


def parse(comment: str) -> dict[str, Any] | None:
    """The settings in a comment, which anybody may have written; None if it is not one of ours."""
    if len(comment) > 2 * MAX_BYTES:
        return None
    try:
        settings = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    if not isinstance(settings, dict) or not all(name in settings for name in _OURS):
        return None
    return settings


def read(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings inside a sound file; None if it has none.

    Raises:
      UserError: as `audio.read`.
    """
    with opened(path) as file:
        if file.format in ("WAV", "WAVEX"):
            return parse(_comment_of_wav(path))
        return parse(file.comment)


def _comment_of_wav(path: str | os.PathLike[str]) -> str:
    """The chunk ICMT, of which libsndfile itself reads at most 2 KB."""
    with user_error("read", path), open(path, "rb") as file:
        file.seek(12)  # RIFF, size, WAVE
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                break
            size = int.from_bytes(head[4:], "little")
            if head[:4] != b"LIST" or size > 4 * MAX_BYTES:
                file.seek(size + size % 2, os.SEEK_CUR)
                continue
            if comment := _comment_of_list(file.read(size)):
                return comment
    return ""


def _comment_of_list(data: bytes) -> str:
    place = 4 if data[:4] == b"INFO" else len(data)
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"ICMT":
            text = data[place + 8 : place + 8 + size]
            return text.split(b"\0")[0].decode("utf-8", "replace")
        place += 8 + size + size % 2
    return ""
