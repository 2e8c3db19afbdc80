"""Forms with files (multipart/form-data), read from memory into memory: no file is ever made."""

from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from musicgen_jax.serving.http.errors import invalid

_PARTS = 64
_HEAD_BYTES = 4096  # of the head of a part, on average

Texts = list[tuple[str, str]]
Files = list[tuple[str, bytes]]


def parse(content_type: str, body: bytes) -> tuple[Texts, Files]:
    """The texts and the files of a form, each with its name.

    Args:
      content_type: the header, which holds the boundary.
      body: the whole form.

    Raises:
      HTTPError: 400, if it is not a whole form of at most 64 parts.
    """
    form = _Form()
    try:
        boundary = _parameters(content_type).get_param("boundary")
        if not isinstance(boundary, str) or not boundary:
            raise _unreadable("its header has no boundary")
        parser = MultipartParser(boundary.encode(), form.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:  # `email` too refuses some headers
        raise _unreadable(str(error)) from None
    if not form.ended:
        raise _unreadable("it is cut off")
    return form.texts, form.files


class _Form:
    """What has been read of a form."""

    def __init__(self):
        self.texts: Texts = []
        self.files: Files = []
        self.ended = False
        self._head, self._field, self._value = Message(), b"", b""
        self._head_bytes = 0
        self._data = bytearray()

    def callbacks(self) -> Any:
        """For the parser, by its names."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value",
                 "header_end", "end")  # fmt: skip
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        if len(self.texts) + len(self.files) >= _PARTS:
            raise _unreadable(f"it has more than {_PARTS} parts")
        self._head, self._data = Message(), bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _part_end(self) -> None:
        name = self._head.get_param("name", header="content-disposition")
        if not isinstance(name, str) or not name:
            raise _unreadable("a part has no name")
        if self._head.get_param("filename", header="content-disposition") is None:
            self.texts.append((name, self._data.decode()))
        else:
            self.files.append((name, bytes(self._data)))

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += self._counted(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _header_end(self) -> None:
        self._head[self._field.decode("latin-1")] = self._value.decode()
        self._field = self._value = b""

    def _end(self) -> None:
        self.ended = True

    def _counted(self, data: bytes) -> bytes:
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES * _PARTS:
            raise _unreadable("the heads of its parts are too long")
        return data


def _parameters(content_type: str) -> Message:
    message = Message()
    message["content-type"] = content_type
    return message


def _unreadable(why: str):
    return invalid(f"the form is not readable: {why}", code="invalid_form")
