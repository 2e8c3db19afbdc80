"""Tables that users bring: captions and lists of files."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import captions, tables
from musicgen_jax.metrics.clips import find_clips

MUSICCAPS = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
    "is_balanced_subset,is_audioset_eval\n"
    "-0Gj8-vB1q4,30,40,\"/m/0140xf,/m/02cjck\",\"['low quality', 'ballad']\","
    '"The low quality recording features a ballad song that ""sighs""\nand ends.",4,False,True\n'
    "_0-2meOf9qY,10,20,/m/04rlf,\"['x']\",A ban echoes. It's loud,1,True,False\n"
)


def zipped(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)  # without it, test names would hold the time


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_musiccaps_as_published(tmp_path):
    for data in (MUSICCAPS, "\ufeff" + MUSICCAPS, MUSICCAPS.replace("\n", "\r\n")):
        found = captions.read(write(tmp_path / "musiccaps-public.csv", data))
        assert list(found) == ["-0Gj8-vB1q4", "_0-2meOf9qY"]
        assert found["_0-2meOf9qY"] == "A ban echoes. It's loud"
        assert found["-0Gj8-vB1q4"].replace("\r", "").endswith('"sighs"\nand ends.')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,caption\na,a waltz\nb/c,drums\n\n"),
        ("a.tsv", "name\tdescription\na\ta waltz\nb/c\tdrums\n"),
        ("a.jsonl", '{"file":"a.wav","text":"a waltz"}\n\n{"file":"b/c.flac","text":"drums"}'),
        ("a.jsonl.gz", zipped('{"id":"a","text":"a waltz"}\n{"id":"b/c","text":"drums"}')),
    ],
)  # fmt: skip
def test_plain_tables(tmp_path, name, content):
    assert captions.read(write(tmp_path / name, content)) == {"a": "a waltz", "b/c": "drums"}


def test_numbers_are_ids():
    assert captions.clip_id(17, "id") == "17"
    assert captions.clip_id(True, "id") == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "ytid,start_s\na,1\n", "no column for the caption"),
        ("a.csv", "caption\nx\n", "no column for the id .*only 'caption'"),
        ("a.csv", "id,caption\na,x\nb,y\na,z\n", "line 4: the id 'a' is in line 2, too"),
        ("a.csv", "id,caption\n ,x\n", "line 2: the id is missing"),
        ("a.csv", "id,caption\na,\n", "line 2: 'a' has no caption"),
        ("a.csv", "id,caption\na,b,c\n", "line 2: 3 fields, but 2 columns"),
        ("a.csv", "id,id\na,b\n", "two columns have the same name"),
        ("a.csv", 'id,caption\na,"open\n', "line 2: "),
        ("a.csv", "id,caption\n", "no rows"),
        ("a.csv", "", "no rows"),
        ("a.csv", b"id,caption\n\xff,x\n", "not UTF-8"),
        ("a.csv", "id,caption\na," + "long " * 2001, "at most 10000"),
        ("a.jsonl", '{"id": "a", "caption": "x"}\n{"id":', "line 2: not JSON"),
        ("a.jsonl", "[1]", "line 1: not a JSON object"),
        ("a.jsonl", '{"id": "a", "caption": null}', "'a' has no caption"),
        ("a.jsonl", '{"id": "a", "caption": "\\ud800"}', "half of a character"),
        ("a.jsonl.gz", b"no gzip", "not gzip, or cut off"),
        ("a.jsonl.gz", zipped('{"id": "a"}')[:-9], "not gzip, or cut off"),
        ("a.parquet", "x", "its name must end in"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words) as error:
        captions.read(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_captions_of_300_words(tmp_path):
    long = " ".join(["music"] * 300)
    assert captions.read(write(tmp_path / "a.csv", f"id,caption\na,{long}\n"))["a"] == long


@given(data=st.binary(max_size=200), suffix=st.sampled_from(tables.SUFFIXES))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_table_or_refused(data, suffix, tmp_path_factory):
    file = write(tmp_path_factory.mktemp("any") / f"a{suffix}", data)
    try:
        rows = tables.read(file)
    except UserError:
        return
    assert rows


@given(rows=st.dictionaries(st.text("ab,\"\n' é", min_size=1), st.text("ab,\"\n' é"), min_size=1))
@settings(max_examples=60, deadline=None)
def test_jsonl_keeps_every_character(rows, tmp_path_factory):
    lines = "".join(json.dumps({"id": k, "caption": v}) + "\n" for k, v in rows.items())
    file = write(tmp_path_factory.mktemp("any") / "a.jsonl", lines)
    assert [row.values for row in tables.read(file)] == [
        {"id": k, "caption": v} for k, v in rows.items()
    ]


# --- Lists of files -------------------------------------------------------------------------------


def test_a_manifest_names_files_next_to_itself(tmp_path):
    lines = ['{"path": "x/a.wav", "duration": 1}', '{"path": "b.flac", "id": "other"}']
    found = find_clips(write(tmp_path / "data.jsonl", "\n".join(lines)))
    assert found == {"other": tmp_path / "b.flac", "x/a": tmp_path / "x/a.wav"}


def test_the_manifest_of_batch(tmp_path):
    line = '{"index": 3, "file": "000003.wav", "prompt": "a waltz"}\n'
    file = write(tmp_path / "manifest.jsonl", line * 2)  # made twice
    assert find_clips(file) == {"000003": tmp_path / "000003.wav"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,x\na,b\n", "no column for the file"),
        ("file\n\n", "no rows"),
        ("file,id\na.wav,1\nb.wav,1\n", "same name"),
        ("file,id\n,1\n", "line 2: the file is missing"),
    ],
)
def test_a_bad_manifest(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        find_clips(write(tmp_path / "a.csv", content))
