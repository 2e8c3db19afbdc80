"""What a command says while it works: lines, bars with the time left, and JSON for programs.

Bars are drawn on stderr, on a terminal only. A line printed through a `Console` moves a bar down
and never ends up in the middle of it.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from musicgen_jax.errors import one_line

Bar = Callable[..., Iterable[Any]]
"""Wraps an iteration, as tqdm does, with `total`, `desc`, and optionally `unit` and `initial`."""


def plain(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """A `Bar` that shows nothing."""
    return items


def add_arguments(
    parser: argparse.ArgumentParser,
    quiet: str = "print nothing, and show no progress",
    as_json: str = "print one JSON object about what was made, and everything else to stderr",
) -> None:
    """Adds `--quiet` and `--json`, with their help."""
    add = parser.add_mutually_exclusive_group().add_argument
    add("-q", "--quiet", action="store_true", help=quiet)
    add("--json", action="store_true", help=as_json)


@dataclasses.dataclass(frozen=True)
class Console:
    """Where a command's output goes.

    Attributes:
      quiet: whether it prints nothing at all, except for errors.
      json: whether stdout is for JSON alone.
    """

    quiet: bool = False
    json: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Console":
        """As the options of `add_arguments` say."""
        return cls(args.quiet, args.json)

    def say(self, line: str) -> None:
        """Prints a line for people."""
        if not self.quiet:
            _print(line, sys.stderr if self.json else sys.stdout)

    def made(self, line: str, /, **facts: Any) -> None:
        """Prints the result: a line for people, or an object of JSON types."""
        if self.json:
            _print(json.dumps(facts), sys.stdout)
        else:
            self.say(line)

    def note(self, line: str) -> None:
        """Prints a line about the work on stderr, if somebody is waiting for it."""
        if self.draws:
            _print(f"musicgen-jax: {line}", sys.stderr)

    @property
    def draws(self) -> bool:
        """Whether somebody looks at bars."""
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()

    def bar(
        self,
        items: Iterable[Any],
        *,
        total: int | None = None,
        desc: str = "",
        unit: str = "clip",
        initial: int = 0,
    ) -> Iterable[Any]:
        """A `Bar`."""
        if not self.draws:
            return items
        from tqdm import tqdm

        return tqdm(
            items, desc, total, initial=initial, unit=unit, file=sys.stderr, dynamic_ncols=True
        )

    @contextlib.contextmanager
    def counter(self, desc: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A bar that is told how far the work is: a function of (done, total)."""
        if not self.draws:
            yield lambda done, total: None
            return
        from tqdm import tqdm

        scaled = unit == "B"
        with tqdm(
            desc=desc, unit=unit, unit_scale=scaled, file=sys.stderr, dynamic_ncols=True
        ) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update


@contextlib.contextmanager
def log_as_lines() -> Iterator[None]:
    """Within this context, the package's log lines look like the command's own, on stderr."""
    logger = logging.getLogger("musicgen_jax")
    handler, passed_on = _Lines(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = passed_on


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _print(f"musicgen-jax: {one_line(record.getMessage())}", sys.stderr)


def _print(line: str, file: TextIO) -> None:
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=file)
        file.flush()
    else:
        print(line, file=file, flush=True)
