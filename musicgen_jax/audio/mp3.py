"""Counts the frames of an mp3 file, because its header can be wrong.

An mp3 file is a sequence of frames. Only an optional first frame (Xing's; "Info" at a constant bit
rate) gives their number. A file that was cut from a stream lacks this frame, and in a joined or
truncated file its number is wrong. libsndfile trusts the number, or estimates it from the first
frame's bit rate, and stops reading there.
"""

import io
import mmap
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

Bytes = bytes | mmap.mmap

_KBPS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_SEARCHED = 1 << 16  # maximum bytes of junk to search for the next frame
_HEADER = 4  # bytes


class _Frame(NamedTuple):
    start: int
    size: int  # bytes
    samples: int  # per channel
    rate: int
    side: int  # bytes of side information; Xing's text comes after it


def corrected(file: BinaryIO) -> BinaryIO | None:
    """The audio of an mp3 file, with a header that gives the correct number of frames.

    Args:
      file: a file open for reading; its position does not matter.

    Returns:
      A file for libsndfile; None if the header of `file` is correct or it is not an mp3 file.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return corrected_bytes(data)


def corrected_bytes(data: Bytes) -> BinaryIO | None:
    """As `corrected`, of the bytes of a file."""
    frames = _frames(data)
    first, said = next(frames, None), None
    if first is not None and _is_info(data, first):
        said, first = _frames_said(data, first), next(frames, None)
    if first is None:
        return None
    number = 1 + sum(1 for _ in frames)
    if number == said:
        return None
    return io.BytesIO(
        _info_frame(data[first.start : first.start + _HEADER], number) + data[first.start :]
    )


def _info_frame(header: bytes, frames: int) -> bytes:
    """A frame without audio that gives the number of frames, with a header like theirs."""
    head = bytearray(header)
    head[1] |= 1  # no checksum
    head[2] = (head[2] & 0x0F) | 0xE0  # the highest bit rate: the text fits in the frame
    frame = _frame(bytes(head), 0)
    assert frame is not None
    text = b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return (bytes(head) + bytes(frame.side) + text).ljust(frame.size, b"\0")


def _frames(data: Bytes) -> Iterator[_Frame]:
    """Yields all frames; skips tags and junk between them."""
    at = _after_tag(data, 0)
    rate = None
    while True:
        frame = _frame(data, at)
        if frame is None or frame.rate != rate:
            frame = _search(data, at, rate)
        if frame is None or frame.start + frame.size > len(data):
            return  # the remainder is a tag, or half a frame
        yield frame
        rate, at = frame.rate, frame.start + frame.size


def _search(data: Bytes, at: int, rate: int | None) -> _Frame | None:
    """The next frame that is followed by another frame or by the end of the file."""
    end = at + _SEARCHED
    while True:
        at = _after_tag(data, at)
        if (frame := _frame(data, at)) is not None and (rate is None or frame.rate == rate):
            after = at + frame.size
            if after >= len(data) or _frame(data, after) is not None:
                return frame
        at = data.find(b"\xff", at + 1)
        if at < 0 or at > end:
            return None


def _after_tag(data: Bytes, at: int) -> int:
    """Skips an ID3 tag, whose pictures can contain any bytes."""
    head = data[at : at + 10]
    if len(head) < 10 or head[:3] != b"ID3":
        return at
    size = sum((head[6 + i] & 0x7F) << 7 * (3 - i) for i in range(4))
    return at + 10 + size + (10 if head[5] & 0x10 else 0)


def _frame(data: Bytes, at: int) -> _Frame | None:
    """The frame whose header is at `at`; None if there is no header."""
    head = data[at : at + _HEADER]
    if len(head) < _HEADER or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # layer III
        return None
    version, code = head[1] >> 3 & 3, head[2] >> 4
    if version == 1 or not 0 < code < 15 or head[2] >> 2 & 3 == 3:
        return None
    first = version == 3
    rate = _RATES[version][head[2] >> 2 & 3]
    samples = 1152 if first else 576
    size = samples // 8 * _KBPS[first][code - 1] * 1000 // rate + (head[2] >> 1 & 1)
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Frame(at, size, samples, rate, side)


def _is_info(data: Bytes, frame: _Frame) -> bool:
    """Whether a frame contains the length of the file instead of audio."""
    at = frame.start + _HEADER
    words = data[at + frame.side : at + frame.side + 4], data[at + 32 : at + 36]
    return words[0] in (b"Xing", b"Info") or words[1] == b"VBRI"


def _frames_said(data: Bytes, info: _Frame) -> int | None:
    """The number of frames according to an information frame."""
    at = info.start + _HEADER + info.side
    known = data[at : at + 4] in (b"Xing", b"Info") and data[at + 7] & 1
    return int.from_bytes(data[at + 8 : at + 12], "big") if known else None
