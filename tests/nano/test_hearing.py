"""What nano says that it understood of a prompt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.nano import captions
from musicgen_jax.nano.composer import sample_spec
from musicgen_jax.nano.hearing import Heard, hear


@pytest.mark.parametrize(
    ("prompt", "understood", "unknown"),
    [
        ("slow sad death metal on piano", ("slow", "minor", "piano"), ("death metal",)),
        ("lo-fi hip hop with vinyl", ("slow",), ("hip hop", "vinyl")),
        ("Lofi Music, 8-Bit Synth", ("slow", "synth"), ()),
        ("un vals lento de piano", ("piano",), ("un vals lento de",)),
        ("静かなピアノ", (), ("静かなピアノ",)),
        ("тихое piano", ("piano",), ("тихое",)),
        ("", (), ()),
        ("?!", (), ()),
        ("a paino watlz, hapy", ("piano", "waltz", "major"), ()),
        ("two flutes and some violins", ("flute", "strings"), ("two",)),
        ("celtic harp", ("jig",), ("harp",)),
        ("not too fast and not too slow", ("medium tempo",), ()),
        ("techno at 128 bpm with no drums", ("fast",), ("techno", "no drums")),
        ("a march without the trumpet, no vocals", ("march",), ("without the trumpet",)),
        ("something tearful in 3/4", ("slow", "minor", "3/4"), ()),
        ("jazz in 5/4 with female vocals", (), ("jazz", "5/4", "female vocals")),
        ("never", (), ("never",)),
    ],
)
def test_a_prompt_is_heard(prompt, understood, unknown):
    assert hear(prompt) == Heard(understood, unknown)


def test_it_says_so_in_a_line():
    assert str(hear("slow piano")) == "slow, piano"
    assert str(hear("polka")) == "nothing that it knows; it does not know: polka"
    parts = [f"noise{chr(97 + i)}" for i in range(9)]
    assert str(hear(" and ".join(parts))).endswith("noisef and 3 more")
    assert len(str(hear("x" * 5000))) < 100


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_what_a_full_caption_says_is_understood(seed):
    spec = sample_spec(np.random.default_rng(seed))
    heard = hear(captions.full_caption(spec))
    assert heard.whole
    names = {
        captions.INSTRUMENTS[spec.lead][0],
        captions.NOUNS[spec.style][0],
        captions.TEMPO_WORDS[spec.tempo][0],
        spec.mode,
        spec.metre,
    }
    band = {captions.INSTRUMENTS[spec.accompaniment][0]} if spec.accompaniment else set()
    band |= {"bass"} if spec.bass else set()
    band |= {"drums"} if spec.drums else set()
    assert set(heard.understood) == names | band


def test_most_words_of_random_captions_are_understood():
    """All but stray words, since what remains is what the captions put there to be ignored."""
    rng = np.random.default_rng(0)
    heard = [hear(captions.caption(sample_spec(rng), rng)) for _ in range(300)]
    assert sum(not each.unknown for each in heard) > 0.93 * len(heard)


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_heard_and_what_is_unknown_is_quoted(prompt):
    heard = hear(prompt)
    plain = " ".join(prompt.split())
    assert all(part in plain for part in heard.unknown)
    assert hear(prompt) == heard
