import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.errors import UserError
from musicgen_jax.storage.tokenizer import END_ID, PAD_ID, Tokenizer
from tests.helpers.tokenizers import UNKNOWN_ID, train


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return train(tmp_path_factory.mktemp("tokenizer") / "spiece.model")


@pytest.fixture(scope="session")
def tokenizer(model_path):
    return Tokenizer(model_path)


def test_ids_end_with_the_end_token_and_pad_with_zero(tokenizer):
    ids, mask = tokenizer(["calm piano", "a"])
    assert ids.dtype == np.int32
    assert mask.dtype == bool
    assert ids.shape == mask.shape
    assert ids[0, -1] == END_ID
    assert mask[0].all()
    used = mask[1].sum()
    assert used < ids.shape[1]
    assert ids[1, used - 1] == END_ID
    assert not ids[1, used:].any()
    assert not mask[1, used:].any()


def test_pieces_are_those_of_sentencepiece(tokenizer, model_path):
    text = "soft drums and a bright piano"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    ids, _ = tokenizer([text])
    assert ids[0].tolist() == [*pieces.encode(text), END_ID]
    assert pieces.decode(ids[0, :-1].tolist()) == text


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_prompt_is_a_row_of_false(tokenizer, nothing):
    ids, mask = tokenizer(["calm piano", nothing])
    assert not mask[1].any()
    assert ids[1, 0] == END_ID  # as audiocraft feeds T5: "" is tokenized, then masked
    alone, alone_mask = tokenizer([nothing])
    assert alone.shape == alone_mask.shape == (1, 1)
    assert not alone_mask.any()


def test_a_space_is_a_prompt(tokenizer):
    ids, mask = tokenizer([" "])
    assert ids.tolist() == [[END_ID]]
    assert mask.tolist() == [[True]]


def test_whitespace_collapses(tokenizer):
    expected = tokenizer(["calm piano"])[0].tolist()
    for text in ("  calm   piano ", "calm\npiano", "calm\t\r\n piano\n"):
        assert tokenizer([text])[0].tolist() == expected


def test_emoji_becomes_unknown(tokenizer):
    ids, mask = tokenizer(["calm 🎹 piano 🥁"])
    assert UNKNOWN_ID in ids
    assert mask.all()


def test_long_prompts_are_not_truncated(tokenizer):
    text = "calm piano " * 1000
    ids, mask = tokenizer([text[:2200]])
    single = tokenizer(["calm piano"])[0].shape[1] - 1
    assert ids.shape[1] > 200 * single
    assert ids[0, -1] == END_ID
    assert mask.all()


def test_control_symbols_in_a_prompt_are_text(tokenizer):
    ids, _ = tokenizer(["calm </s> <pad> piano"])
    assert (ids == END_ID).sum() == 1
    assert PAD_ID not in ids


def test_a_prompt_that_would_fill_the_memory_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"prompt 1 has .* tokens, at most 2048 fit"):
        tokenizer(["short", "a " * 3000])


def test_length_pads_and_refuses_what_does_not_fit(tokenizer):
    short, short_mask = tokenizer(["calm", None])
    ids, mask = tokenizer(["calm", None], length=20)
    assert ids.shape == mask.shape == (2, 20)
    np.testing.assert_array_equal(ids[:, : short.shape[1]], short)
    np.testing.assert_array_equal(mask[:, : short.shape[1]], short_mask)
    assert not ids[:, short.shape[1] :].any()
    assert not mask[:, short.shape[1] :].any()
    with pytest.raises(UserError, match=r"^prompt 1 has \d+ tokens, at most 3 fit$"):
        tokenizer(["a", "an epic orchestra with choir"], length=3)


def test_no_prompts_at_all(tokenizer):
    ids, mask = tokenizer([])
    assert ids.shape == mask.shape == (0, 1)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("calm piano", "must be a list"),
        (["a", 3], "prompt 1 must be a string or None, got int"),
        (["calm \udcff"], "prompt 0 is not valid Unicode"),
    ],
)
def test_wrong_prompts(tokenizer, texts, message):
    with pytest.raises(UserError, match=message):
        tokenizer(texts)


def test_missing_and_broken_files(tmp_path, model_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        Tokenizer(tmp_path / "none.model")
    with pytest.raises(UserError, match=r"cannot read"):
        Tokenizer(tmp_path)
    whole = model_path.read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "zeros": bytes(100),
        "half": whole[: len(whole) // 2],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged: not a sentencepiece model$"):
            Tokenizer(path)


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    path = train(tmp_path / "llama.model", pad_id=-1, eos_id=2, unk_id=0, bos_id=1)
    with pytest.raises(UserError, match="not a T5 tokenizer"):
        Tokenizer(path)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4)
)
def test_any_text_makes_a_well_formed_batch(tokenizer, texts):
    ids, mask = tokenizer(texts)
    assert ids.shape == mask.shape
    assert ids.shape[0] == len(texts)
    assert np.all((ids >= 0) & (ids < tokenizer.vocab_size))
    for text, row, row_mask in zip(texts, ids, mask, strict=True):
        assert row_mask.any() == bool(text)
        if text:  # a run of tokens, the end, then padding only
            used = row_mask.sum()
            assert row_mask[:used].all()
            assert row[used - 1] == END_ID
            assert not row[used:].any()
            np.testing.assert_array_equal(tokenizer([text])[0][0], row[:used])
