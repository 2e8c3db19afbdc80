"""The answers of all raters, in one SQLite file.

A score is on the disk before `record` returns: every score is a transaction of its own, in
write-ahead logging with `synchronous = FULL`. A server that is killed loses nothing that it has
confirmed. Writing the same score twice changes nothing, so the page may repeat a score if it is not
sure.
"""

import contextlib
import dataclasses
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from musicgen_jax.errors import UserError, reason
from musicgen_jax.listening.study import Study

MAX_RATERS = 10_000
MAX_NAME = 80  # characters

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
  number INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL CHECK (typeof(name) = 'text'),
  joined REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
  rater INTEGER NOT NULL REFERENCES raters (number),
  clip TEXT NOT NULL,
  scale TEXT NOT NULL,
  score INTEGER NOT NULL CHECK (typeof(score) = 'integer' AND score BETWEEN 1 AND 100),
  heard REAL NOT NULL CHECK (typeof(heard) = 'real' AND heard BETWEEN 0 AND 1),
  at REAL NOT NULL CHECK (typeof(at) = 'real' AND at BETWEEN 0 AND 1e11),
  PRIMARY KEY (rater, clip, scale)
);
"""


@dataclasses.dataclass(frozen=True)
class Rater:
    """One rater.

    Attributes:
      number: counts from 0 and determines the order of pieces and clips.
      key: the secret in the rater's own address.
      name: empty if the rater gave none.
    """

    number: int
    key: str
    name: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One score.

    Attributes:
      rater: the rater's number.
      clip: the clip's file.
      scale: a key of `SCALES`.
      score: from 1 to 100.
      heard: the share of the clip that was heard before, from 0 to 1.
      at: seconds since 1970.
    """

    rater: int
    clip: str
    scale: str
    score: int
    heard: float
    at: float


class Answers:
    """The file `answers.sqlite` of a study. Threads may share one object.

    Args:
      folder: of the study.
      study: what the answers are about.
      create: whether to make the file if there is none, and to write to it.

    Raises:
      UserError: the file cannot be opened or written, or holds answers to another study.
    """

    def __init__(self, folder: Path, study: Study, *, create: bool = True):
        self.path = folder / "answers.sqlite"
        if not create and not self.path.is_file():
            raise UserError(f"{folder} holds no answers yet: nobody has opened the study")
        self._asked = {clip.file: item.scales for item in study.items for clip in item.clips}
        self._lock = threading.Lock()
        with self._errors("open"):
            self._database = sqlite3.connect(
                self.path, timeout=30, isolation_level=None, check_same_thread=False
            )
        try:
            with self._errors("open"):
                self._prepare(study)
        except BaseException:
            self._database.close()
            raise

    def _prepare(self, study: Study) -> None:
        run = self._database.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA foreign_keys = ON")
        (state,) = run("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        with self._transaction():
            for statement in _SCHEMA.split(";\n"):
                run(statement)
            known = run("SELECT id FROM study").fetchone()
            if known is None:
                run("INSERT INTO study VALUES (?)", (study.id,))
            elif known != (study.id,):
                raise UserError(
                    f"{self.path} holds answers to another study: move it away, or put its own "
                    "study.json back"
                )

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Raters -------------------------------------------------------------------------------

    def join(self, name: str) -> Rater:
        """Takes in a rater.

        Raises:
          UserError: the file cannot be written, or there are `MAX_RATERS` already.
        """
        key = secrets.token_urlsafe(16)
        with self._lock, self._errors("write"), self._transaction():
            run = self._database.execute
            (number,) = run("SELECT COUNT(*) FROM raters").fetchone()
            if number >= MAX_RATERS:
                raise UserError(f"this study has {MAX_RATERS} raters already")
            run("INSERT INTO raters VALUES (?, ?, ?, ?)", (number, key, name, time.time()))
        return Rater(number, key, name)

    def rater(self, key: str) -> Rater | None:
        """The rater with this key, None if there is none."""
        query = "SELECT number, key, name FROM raters WHERE key = ?"
        with self._lock, self._errors("read"):
            row = self._database.execute(query, (key,)).fetchone()
        return Rater(*row) if row else None

    def raters(self) -> list[Rater]:
        """All raters, by number."""
        query = "SELECT number, key, name FROM raters ORDER BY number"
        with self._lock, self._errors("read"):
            return [Rater(*row) for row in self._database.execute(query)]

    # --- Answers ------------------------------------------------------------------------------

    def record(self, answer: Answer) -> None:
        """Writes a score to the disk, and replaces an earlier one of the same rater.

        Raises:
          UserError: the file cannot be written, or the disk is full.
        """
        with self._lock, self._errors("write"), self._transaction():
            self._database.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (rater, clip, scale) DO UPDATE "
                "SET score = excluded.score, heard = excluded.heard, at = excluded.at",
                dataclasses.astuple(answer),
            )

    def of(self, rater: Rater) -> list[Answer]:
        """What a rater has answered."""
        return self._read("WHERE rater = ?", (rater.number,))

    def all(self) -> list[Answer]:
        """All answers, by rater and time."""
        return self._read("", ())

    def _read(self, where: str, values: tuple) -> list[Answer]:
        columns = ", ".join(field.name for field in dataclasses.fields(Answer))
        query = f"SELECT {columns} FROM answers {where} ORDER BY rater, at, clip, scale"
        with self._lock, self._errors("read"):
            known = {number for (number,) in self._database.execute("SELECT number FROM raters")}
            found = [Answer(*row) for row in self._database.execute(query, values)]
        for answer in found:
            if answer.rater not in known or answer.scale not in self._asked.get(answer.clip, ()):
                raise UserError(
                    f"{self.path} is damaged: it has answers to questions that the "
                    f"study does not ask"
                )
        return found

    # --- SQLite -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"cannot {verb} {self.path}: {reason(error)}") from error
        except UnicodeError:
            raise UserError(f"cannot {verb} {self.path}: damaged") from None
