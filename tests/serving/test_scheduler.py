"""The scheduler: clips of every kind at once, each the same as alone; nobody waits for ever."""

import dataclasses
import threading

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.model import MusicGen
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.scheduler import Scheduler
from musicgen_jax.serving.ticket import Busy, Cancelled, Closing, DeadlinePassed

LM = dataclasses.replace(testing.DEBUG.lm, num_layers=1)
T5 = dataclasses.replace(testing.DEBUG.t5, num_layers=1)
MODEL = dataclasses.replace(testing.DEBUG, lm=LM, t5=T5)


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return testing.random_model(MODEL)


@pytest.fixture(scope="module")
def scheduler(model):
    with Scheduler(model.parts, slots=3) as scheduler:
        assert scheduler.ready.wait(240)
        yield scheduler


def ask(text: str | None, seed: int, seconds: float, **sampling) -> Request:
    return Request(
        config=MODEL,
        descriptions=[text],
        duration=seconds,
        seed=seed,
        sampling=Sampling(**sampling),
    )


CLIPS = [
    ask("a calm waltz", 7, 1.0),
    ask(None, 2**32 - 1, 0.3),  # shorter than a window of the codec
    ask("drums", 3, 7.0, top_k=5),  # four windows
    dataclasses.replace(ask("harp", 3, 7.0), join="crossfade"),
    ask("bells", 1, 2.9, temperature=1.3, top_p=0.9),
    ask("tuba", 1, 2.0, use_sampling=False, cfg_coef=1.0),
]


def test_every_clip_is_the_same_among_others_and_alone(scheduler):
    together = [ticket.result() for ticket in [scheduler.submit(clip) for clip in CLIPS]]
    for clip, made in reversed(list(zip(CLIPS, together, strict=True))):
        alone = scheduler.submit(clip).result()
        np.testing.assert_array_equal(alone.codes, made.codes)
        np.testing.assert_array_equal(alone.audio, made.audio)
        assert made.codes.shape[2] * 80 == made.audio.shape[2]
    assert scheduler.compilations == 0


def test_the_music_is_that_of_generate(model, scheduler):
    for clip in CLIPS:
        made = scheduler.submit(clip).result()
        sampling = dataclasses.asdict(clip.sampling)
        del sampling["cfg_coef_beta"]
        expected = model.generate(
            clip.descriptions, seed=clip.seed, duration=clip.duration, join=clip.join, **sampling
        )
        np.testing.assert_array_equal(made.codes, expected.codes)
        kept = (clip.frames - 5) * 80 if clip.duration < 0.5 else None  # see `PieceDecoder`
        np.testing.assert_allclose(
            made.audio[..., :kept], expected.audio[..., :kept], atol=1e-4 * np.abs(made.audio).max()
        )


def test_blocks_are_the_whole(scheduler):
    heard = threading.Event()
    ticket = scheduler.submit(CLIPS[0])
    ticket.listen(heard.set)
    blocks = list(ticket)
    assert heard.is_set()
    assert len(blocks) == 2
    np.testing.assert_array_equal(np.concatenate(blocks, 1), ticket.result().audio[0])
    assert ticket.steps == (53, 53)
    assert ticket.position == 0
    assert str(ticket.result().program).startswith("slots=3 steps=160 text=64 dtype=float32")


def test_a_long_piece_starves_nobody(scheduler):
    long = [scheduler.submit(ask("x", i, 60.0)) for i in range(4)]
    assert scheduler.submit(CLIPS[0]).result().codes.shape[2] == 50
    assert not any(ticket.done for ticket in long)
    for ticket in long:
        ticket.cancel()
        with pytest.raises(Cancelled):
            ticket.result()
    assert scheduler.submit(CLIPS[0]).result().codes.shape[2] == 50


def test_listeners_who_leave_disturb_nobody(scheduler):
    """Cancelled while waiting, in a slot, between windows and at the end, from other threads."""
    expected = [scheduler.submit(clip).result() for clip in CLIPS]
    rng = np.random.default_rng(0)
    for _ in range(4):
        tickets = [scheduler.submit(clip) for clip in CLIPS for _ in range(3)]
        leaving = rng.permutation(len(tickets))[:9]
        timers = [
            threading.Timer(float(wait), tickets[i].cancel)
            for i, wait in zip(leaving, rng.uniform(0, 0.3, len(leaving)), strict=True)
        ]
        for timer in timers:
            timer.start()
        for i, ticket in enumerate(tickets):
            try:
                made = ticket.result(60)
            except Cancelled:
                assert i in leaving
            else:
                np.testing.assert_array_equal(made.audio, expected[i // 3].audio)
    assert scheduler.waiting == 0


def test_a_window_that_cannot_be_saved_ends_one_clip(scheduler):
    class Full:
        def load(self, window):
            return None

        def save(self, window, codes):
            raise UserError("cannot write it: No space left on device")

    lost = scheduler.submit(CLIPS[2], store=Full())
    kept = scheduler.submit(CLIPS[0])
    with pytest.raises(UserError, match="No space left"):
        lost.result()
    assert kept.result().codes.shape[2] == 50


def test_a_deadline(scheduler):
    ticket = scheduler.submit(ask("x", 1, 3600.0), deadline=0.05)
    with pytest.raises(DeadlinePassed):
        list(ticket)


def test_a_deadline_holds_while_the_model_is_compiled(model, monkeypatch):
    compiled = threading.Event()
    monkeypatch.setattr(Engine, "warm_up", lambda engine: compiled.wait(60))
    with Scheduler(model.parts, slots=1) as scheduler:
        waits = scheduler.submit(ask("a", 1, 0.5))
        late = scheduler.submit(ask("a", 1, 0.5), deadline=0.2)
        with pytest.raises(DeadlinePassed):
            late.result(30)
        assert not scheduler.ready.is_set()
        assert not waits.done
        compiled.set()
        waits.result(60)


def test_what_is_refused(model, scheduler):
    with pytest.raises(UserError, match="the description has more than 64 tokens"):
        scheduler.submit(ask("la " * 100, 0, 1.0))
    with pytest.raises(UserError, match="a slot takes one clip"):
        scheduler.submit(dataclasses.replace(CLIPS[0], descriptions=["a", "b"]))
    for bad in (0, -1.0, float("nan"), float("inf"), "soon", True):
        with pytest.raises(UserError, match="deadline must be more than 0 seconds"):
            scheduler.submit(CLIPS[0], deadline=bad)
    assert scheduler.submit(CLIPS[0], deadline=1e300).result().codes.shape[0] == 1
    for bad in (0, True, 2.0):
        with pytest.raises(UserError, match="slots must be an integer from 1"):
            Scheduler(model.parts, slots=bad)  # type: ignore[arg-type]


def test_a_full_queue_and_the_end(model):
    with Scheduler(model.parts, slots=1, queue=2, seconds=2.0, warm=False) as scheduler:
        with pytest.raises(UserError, match="duration must be at most 2 seconds here"):
            scheduler.submit(ask("x", 1, 2.1))
        first = scheduler.submit(ask("x", 1, 2.0))
        next(iter(first))
        others = [scheduler.submit(CLIPS[0]) for _ in range(2)]
        assert [ticket.position for ticket in others] == [1, 2]
        with pytest.raises(Busy):
            scheduler.submit(CLIPS[0])
        assert not scheduler.drain(timeout=0)
        with pytest.raises(Closing):
            scheduler.submit(CLIPS[0])
        others[1].cancel()
        assert scheduler.drain()
        assert others[0].result().codes.shape[2] == 50
    with pytest.raises(Cancelled):
        others[1].result()
