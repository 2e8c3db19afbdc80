"""Who hears what, in which order: fair, random, and the same after a restart."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax.listening.order import clips_for, items_for
from tests.helpers.studies import study_of


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 30), st.integers(0, 2**63 - 1))
def test_pieces_are_dealt_evenly(pieces, per_rater, raters, seed):
    study = study_of(pieces, min(per_rater, pieces), seed)
    counts = collections.Counter({item.id: 0 for item in study.items})
    for number in range(raters):
        hand = items_for(study, number)
        assert len({item.id for item in hand}) == len(hand) == study.per_rater
        assert hand == items_for(study, number)
        counts.update(item.id for item in hand)
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.integers(0, 50), st.integers(0, 2**63 - 1))
def test_every_clip_of_a_piece_is_heard_once(number, seed):
    study = study_of(3, 3, seed)
    for item in study.items:
        clips = clips_for(study, number, item)
        assert sorted(clip.file for clip in clips) == sorted(clip.file for clip in item.clips)
        assert clips == clips_for(study, number, item)


def test_every_system_stands_in_every_place_about_equally_often():
    study = study_of(20, 20)
    places = collections.Counter(
        (clip.system, place)
        for number in range(50)
        for item in study.items
        for place, clip in enumerate(clips_for(study, number, item))
    )
    assert len(places) == 16
    assert all(200 < count < 300 for count in places.values())  # 250 expected, deviation 14


def test_raters_and_pieces_and_seeds_have_orders_of_their_own():
    study, other = study_of(6, 6), study_of(6, 6, seed=1)
    orders = {tuple(item.id for item in items_for(study, number)) for number in range(20)}
    assert len(orders) > 15
    assert items_for(study, 0) != items_for(other, 0)
    letters = {
        tuple(clip.system for clip in clips_for(study, n, item))
        for n in range(5)
        for item in study.items
    }
    assert len(letters) > 12
