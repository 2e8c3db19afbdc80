"""The answers' file: what it keeps, what it refuses, and whose it is."""

import dataclasses
import sqlite3

import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.listening.answers import Answer, Answers
from tests.helpers.studies import study_of

STUDY = study_of(2, 2)


def answer(rater, score=50, clip=0, **changes):
    return Answer(rater.number, f"{clip:016x}.wav", "overall", score, 1.0, 1e9, **changes)


def test_answers_come_back_after_reopening(tmp_path):
    with Answers(tmp_path, STUDY) as store:
        ada, nobody = store.join("Ada"), store.join("")
        store.record(answer(ada, 70))
        store.record(answer(ada, 20, clip=1))
        store.record(answer(nobody, 1))
    with Answers(tmp_path, STUDY) as store:
        assert store.raters() == [ada, nobody]
        assert store.rater(ada.key) == ada
        assert store.rater("nobody's key") is None
        assert store.of(ada) == [answer(ada, 70), answer(ada, 20, clip=1)]
        assert len(store.all()) == 3


def test_the_last_score_counts(tmp_path):
    with Answers(tmp_path, STUDY) as store:
        ada = store.join("")
        for score in (70, 30, 30, 45):
            store.record(answer(ada, score))
        assert store.all() == [answer(ada, 45)]


def test_every_commit_goes_to_the_disk(tmp_path):
    """FULL is 2; in WAL mode it flushes at every commit."""
    with Answers(tmp_path, STUDY) as store:
        assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("change", [{"score": 0}, {"score": 101}, {"heard": 1.5}, {"rater": 7}])
def test_the_file_itself_refuses_nonsense(change, tmp_path):
    with Answers(tmp_path, STUDY) as store:
        wrong = dataclasses.replace(answer(store.join("")), **change)
        with pytest.raises(UserError, match="cannot write"):
            store.record(wrong)
        assert store.all() == []


def test_answers_to_another_study_are_not_mixed_in(tmp_path):
    with Answers(tmp_path, STUDY) as store:
        store.join("")
    with pytest.raises(UserError, match="answers to another study"):
        Answers(tmp_path, dataclasses.replace(STUDY, id="another"))
    with Answers(tmp_path, STUDY) as store:
        assert len(store.raters()) == 1


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"scribbles" * 200)
    with pytest.raises(UserError, match=r"cannot open .*answers\.sqlite: file is not a database"):
        Answers(tmp_path, STUDY)


def test_no_answers_yet(tmp_path):
    with pytest.raises(UserError, match="no answers yet"):
        Answers(tmp_path, STUDY, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_the_next_score_is_saved(tmp_path):
    with Answers(tmp_path, study_of(300, 2)) as store:
        ada = store.join("")
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        clips = iter(range(1000))
        with pytest.raises(UserError, match="database or disk is full"):
            any(store.record(answer(ada, clip=clip)) for clip in clips)
        kept = len(store.all())
        store._database.execute("PRAGMA max_page_count = 100000")
        store.record(answer(ada, clip=1199))
        assert len(store.all()) == kept + 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE answers SET clip = 'elsewhere.wav'",
        "UPDATE answers SET scale = 'melody'",
        "PRAGMA foreign_keys = OFF; UPDATE answers SET rater = 9",
        "PRAGMA ignore_check_constraints = ON; UPDATE answers SET score = 'many'",
        "PRAGMA ignore_check_constraints = ON; UPDATE answers SET score = 700",
        "PRAGMA ignore_check_constraints = ON; UPDATE answers SET at = 1e300",
        "DROP TABLE answers; CREATE TABLE answers (rater, score)",
        "DROP TABLE study",
        "INSERT INTO raters VALUES (2, x'ff', 'x', 0)",
    ],
)
def test_what_somebody_else_has_written_there(statement, tmp_path):
    """Refused in one line, or harmless."""
    with Answers(tmp_path, STUDY) as store:
        store.record(answer(store.join("")))
    database = sqlite3.connect(tmp_path / "answers.sqlite")
    database.executescript(statement)
    database.close()
    refusal, scores = "", []
    try:
        with Answers(tmp_path, STUDY, create=False) as store:
            assert all(isinstance(rater.name, str) for rater in store.raters())
            scores = [one.score for one in store.all()]
    except UserError as error:
        refusal = str(error)
    assert scores == [50] or "answers.sqlite" in refusal
    assert "\n" not in refusal


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(UserError, match="unable to open database file"):
        Answers(tmp_path, STUDY)
