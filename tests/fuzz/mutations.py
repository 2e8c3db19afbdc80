"""Damages a valid file as transfers, disks and attackers do, within the structure of its format."""

import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable

Mutate = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400)
_TEXTS = ("", "x" * 10_000, "\x1b[31m", "\x00", "\u202e", "../../etc/passwd", "é", "NaN", "-1")
_FLOATS = (0.5, -0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
_OTHERS = (None, True, False, [], {}, [[]], [0] * 1000, {"": None})
_LONG = 1 << 20  # bytes
_SPELLED = (b"-1", b"0", b"1e999", b"9" * 5000, b"NaN", b"-Infinity", b"null", b'"x"', b"[]")


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to three random mutations that suit what `data` looks like; fewer once it is long."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(data) < _LONG:
            data = rng.choice(_suitable(data))(rng, data)
    return data


def _suitable(data: bytes) -> list[Mutate]:
    found: list[Mutate] = [flip, cut, repeat, overwrite]
    if data[:2] == b"PK":
        found += [zip_member] * 6
    elif data[:6] == b"\x93NUMPY":
        found += [numpy_header] * 3
    elif data[8:10] == b'{"':  # safetensors: the length of the header, then the header
        found += [safetensors_header] * 6
    elif data[:1] in b"{[":
        found += [json_leaf] * 6 + [spelled] * 2 + [nested]
    elif data[:4] not in (b"RIFF", b"fLaC", b"OggS") and data[:3] != b"ID3" and _is_text(data):
        found += [spelled] * 2 + [lines] * 2
    return found


def _is_text(data: bytes) -> bool:
    return b"\0" not in data[:2000]


# --- Bytes --------------------------------------------------------------------------------------


def flip(rng: random.Random, data: bytes) -> bytes:
    """Other bytes in up to eight places."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """The end is missing, or a part in the middle."""
    begin = rng.randint(0, len(data))
    end = len(data) if rng.random() < 0.5 else rng.randint(begin, len(data))
    return data[:begin] + data[end:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """A part appears again somewhere else."""
    begin = rng.randint(0, len(data))
    part = data[begin : begin + rng.choice((1, 4, 64, 4096))]
    at = rng.randint(0, len(data))
    return data[:at] + part * rng.choice((1, 2, 50)) + data[at:]


def overwrite(rng: random.Random, data: bytes) -> bytes:
    """An extreme integer, of 1 to 8 bytes, in place of what was there."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice((0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1))))
    at = rng.randint(0, len(data))
    packed = number.to_bytes(size, rng.choice(("little", "big")), signed=True)
    return data[:at] + packed + data[at + size :]


# --- Text ---------------------------------------------------------------------------------------


def json_leaf(rng: random.Random, data: bytes) -> bytes:
    """Another value, a missing field or a new one, anywhere in a JSON document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return flip(rng, data)
    places = list(_places(document))
    if not places:
        return json.dumps(_strange(rng)).encode()
    holder, key = rng.choice(places)
    how = rng.random()
    if how < 0.1:
        del holder[key]
    elif how < 0.2 and isinstance(holder, dict):
        holder[rng.choice(_TEXTS)] = _strange(rng)
    else:
        holder[key] = _strange(rng)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _strange(rng: random.Random):
    return rng.choice(rng.choice((_NUMBERS, _FLOATS, _TEXTS, _OTHERS, ("\ud800",))))


def spelled(rng: random.Random, data: bytes) -> bytes:
    """A number in a text, spelled as something that is hard to read."""
    found = list(re.finditer(rb"\d+(\.\d+)?", data))
    if not found:
        return flip(rng, data)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(_SPELLED) + data[match.end() :]


def nested(rng: random.Random, data: bytes) -> bytes:
    """A list in a list in a list."""
    depth = rng.choice((100, 2000, 100_000))
    at = rng.choice((0, data.find(b":") + 1))
    return data[:at] + b"[" * depth + (b"]" * depth if rng.random() < 0.5 else b"") + data[at:]


def lines(rng: random.Random, data: bytes) -> bytes:
    """A line goes, comes twice, or is very long."""
    parts = data.split(b"\n")
    at = rng.randrange(len(parts))
    long = parts[at] * min(3000, _LONG // (len(parts[at]) + 1))
    parts[at : at + 1] = rng.choice(([], [parts[at]] * 2, [long], [b"\xff\xfe"]))
    return b"\n".join(parts)


# --- Containers ---------------------------------------------------------------------------------


def zip_member(rng: random.Random, data: bytes) -> bytes:
    """A member of a zip is damaged, renamed, missing or there twice; the zip itself is whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # it is damaged already
        return flip(rng, data)
    if not members:
        return data
    at = rng.randrange(len(members))
    name, content = members[at]
    how = rng.random()
    if how < 0.7:
        members[at] = (name, mutate(rng, content))
    elif how < 0.8:
        del members[at]
    elif how < 0.9:
        members[at] = (rng.choice(_TEXTS) or "x", content)
    else:
        members.append((f"{name}2", content))
    out = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", kind) as made:
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in members:
            made.writestr(name.replace("\0", "0"), content)
    return out.getvalue()


def numpy_header(rng: random.Random, data: bytes) -> bytes:
    """Another shape, type or order in the header of a .npy file."""
    length = struct.unpack("<H", data[8:10])[0] if len(data) > 10 else 0
    header = data[10 : 10 + length]
    changed = rng.choice(
        (
            spelled(rng, header),
            flip(rng, header),
            header.replace(b"<i4", rng.choice((b"|O", b"<f8", b"<U9", b">i2", b"<M8[s]"))),
            header.replace(b"False", b"True"),
            header.replace(b"'shape': (", b"'shape': (99999999999, "),
        )
    )
    return data[:8] + struct.pack("<H", len(changed) & 0xFFFF) + changed + data[10 + length :]


def safetensors_header(rng: random.Random, data: bytes) -> bytes:
    """A damaged header with its right length."""
    length = int.from_bytes(data[:8], "little")
    header = rng.choice((json_leaf, spelled, nested))(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
