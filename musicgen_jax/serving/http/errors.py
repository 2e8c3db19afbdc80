"""Failures, as a status and JSON in the shape that OpenAI's clients read."""

import json
from collections.abc import Mapping

from starlette.responses import Response

from musicgen_jax.errors import UserError
from musicgen_jax.generation.schedule import TooLate
from musicgen_jax.serving.ticket import Busy, Cancelled, Closing, DeadlinePassed


class HTTPError(Exception):
    """A refusal or a failure with its status.

    Args:
      status: of HTTP.
      message: for a person: the fault, and the way out.
      code: for a program.
      param: the field at fault.
      headers: more headers for the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer."""
        return Response(
            error_json(self.status, self.message, self.code, self.param),
            self.status,
            self.headers,
            "application/json",
        )


class ClientGone(Exception):
    """The client has left, or does not read the answer."""


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> HTTPError:
    """The request itself is at fault."""
    return HTTPError(400, message, code, param=param)


def error_json(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """The body of an answer."""
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
            429: "rate_limit_error"}.get(status)  # fmt: skip
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def as_http(error: BaseException, *, retry_after: int) -> HTTPError:
    """Any failure as an answer.

    Args:
      error: of a route, of the scheduler or of a ticket.
      retry_after: seconds after which there may be a place in the queue.
    """
    again = {"Retry-After": str(retry_after)}
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, Busy):
        return HTTPError(429, str(error), "queue_full", headers=again)
    if isinstance(error, Closing):
        return HTTPError(503, str(error), "shutting_down", headers=again)
    if isinstance(error, Cancelled):
        return HTTPError(503, str(error), "cancelled", headers=again)
    if isinstance(error, DeadlinePassed):
        return HTTPError(504, str(error), "deadline_passed")
    if isinstance(error, TooLate):
        return HTTPError(409, str(error), "finished")
    if isinstance(error, UserError):
        return invalid(str(error))
    return HTTPError(500, "an internal error of the server; its log says more", "internal_error")
