"""Generation: the loop against a plain reference, and what it promises about determinism."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.generation import decode, program
from musicgen_jax.generation.decode import cache_growth, example_keys, stream_codes
from musicgen_jax.generation.plan import cache_lengths
from musicgen_jax.generation.program import Program, Requests
from musicgen_jax.generation.sampling import Mode, Numbers
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn import patterns
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime.memory import nbytes
from musicgen_jax.runtime.tuning import CPU, Tuning
from tests.helpers.generation import generate_codes
from tests.helpers.lm_models import CONFIG, FORMS, make_condition, make_lm

FRAMES = 9
SHORT = Tuning(cache_lengths=(8, 16, 24, 40))
GROWING = dataclasses.replace(SHORT, grow_cache_above=(0.0, 0))
greedy = partial(generate_codes, use_sampling=False)
forward = jax.jit(LM.__call__)


def random_prompt(batch: int, frames: int) -> np.ndarray:
    shape = (batch, CONFIG.n_q, frames)
    return np.random.default_rng(4).integers(0, CONFIG.card, shape, np.int32)


def reference_greedy(lm, condition, num_frames, prompt=None, coef=3.0, null=None) -> np.ndarray:
    """The textbook loop: the whole sequence again at every step, two passes, no cache."""
    delays, special = CONFIG.delays, CONFIG.special_token
    length = patterns.num_steps(num_frames, delays)
    batch = condition.text.vectors.shape[0]
    steps = np.full((batch, CONFIG.n_q, length), special, np.int32)
    null = null or Condition()
    for s in range(length - 1):
        # Later steps are still special: causality hides them.
        logits, base = (np.asarray(forward(lm, steps, c))[:, :, s] for c in (condition, null))
        best = (base + (logits - base) * coef).argmax(-1)
        for k, delay in enumerate(delays):
            frame = s - delay
            if 0 <= frame < num_frames:
                known = prompt is not None and frame < prompt.shape[2]
                steps[:, k, s + 1] = prompt[:, k, frame] if known else best[:, k]
    return patterns.to_codes(steps, delays)


@pytest.mark.parametrize("prompt_frames", [0, 1, 5])
def test_greedy_equals_the_textbook_loop(prompt_frames):
    lm, condition = make_lm(layers=2), make_condition([4, 2], 4)
    prompt = random_prompt(2, prompt_frames)
    codes = greedy(lm, condition, num_frames=FRAMES, prompt=prompt if prompt_frames else None)
    assert codes.shape == (2, CONFIG.n_q, FRAMES)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, reference_greedy(lm, condition, FRAMES, prompt))
    np.testing.assert_array_equal(codes[:, :, :prompt_frames], prompt)
    assert len(np.unique(codes)) > 4


def test_the_null_row_of_a_prefix_is_zeros_in_its_place():
    lm, condition = make_lm("prepend"), make_condition([4], 4, prefix=3)
    null = Condition(
        Embedded(jnp.zeros_like(condition.text.vectors), condition.text.mask),
        Embedded(jnp.zeros_like(condition.audio.vectors), condition.audio.mask),
    )
    codes = greedy(lm, condition, num_frames=FRAMES)
    np.testing.assert_array_equal(codes, reference_greedy(lm, condition, FRAMES, null=null))


def test_no_text_in_a_prefix_model_is_one_zero_vector():
    lm = make_lm("prepend")
    one = Condition(Embedded(jnp.zeros((1, 1, CONFIG.dim)), jnp.ones((1, 1), bool)))
    codes = greedy(lm, make_condition([0], 3), num_frames=FRAMES)
    np.testing.assert_array_equal(codes, reference_greedy(lm, one, FRAMES, coef=1.0))


def test_without_condition_guidance_cancels():
    lm, empty = make_lm(), make_condition([0, 0], 3)
    codes = generate_codes(lm, empty, num_frames=FRAMES, seed=3)
    np.testing.assert_array_equal(
        codes, generate_codes(lm, empty, num_frames=FRAMES, seed=3, cfg_coef=9.0)
    )
    np.testing.assert_array_equal(
        codes, generate_codes(lm, Condition(), num_frames=FRAMES, keys=example_keys(3, 2))
    )
    # In a batch with a guided row the empty row is guided too, by itself.
    mixed = generate_codes(lm, make_condition([0, 4], 4), num_frames=FRAMES, seed=3)
    np.testing.assert_array_equal(mixed[0], codes[0])


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_a_prompt_does_not_depend_on_its_neighbours(conditioning, prefix, sampled):
    lm = make_lm(conditioning)
    run = partial(generate_codes, lm, num_frames=FRAMES, use_sampling=sampled, top_k=7)
    alone = run(make_condition([2], 2, prefix=prefix), seed=5)
    together = run(make_condition([2, 19], 19, prefix=prefix), seed=5)
    np.testing.assert_array_equal(alone[0], together[0])
    assert not np.array_equal(together[0], together[1])


def test_each_seed_gives_in_a_batch_what_it_gives_alone():
    lm, condition = make_lm(), make_condition([3, 3], 3)
    same = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), condition)
    one = jax.tree.map(lambda x: x[:1], same)
    together = generate_codes(lm, same, num_frames=FRAMES, seed=[7, 8])
    for i, seed in enumerate((7, 8)):
        alone = generate_codes(lm, one, num_frames=FRAMES, seed=seed)
        np.testing.assert_array_equal(together[i], alone[0])
    assert not np.array_equal(together[0], together[1])
    # One seed for the batch draws differently for equal prompts, and the same every time.
    spread = generate_codes(lm, same, num_frames=FRAMES, seed=7)
    np.testing.assert_array_equal(spread[0], together[0])
    assert not np.array_equal(spread[0], spread[1])
    np.testing.assert_array_equal(spread, generate_codes(lm, same, num_frames=FRAMES, seed=7))


def test_chunks_and_callback():
    lm, condition = make_lm(), make_condition([3], 3)
    run = partial(generate_codes, lm, condition, num_frames=23, seed=1, prompt=random_prompt(1, 2))
    calls = []
    codes = run(callback=lambda done, total: calls.append((done, total)))
    total = 23 + max(CONFIG.delays) - 2
    assert calls == [(10, total), (20, total), (total, total)]
    np.testing.assert_array_equal(codes, run())
    lm.tuning = Tuning(callback_steps=3)
    np.testing.assert_array_equal(codes, run(callback=lambda *_: None))


def test_one_compilation_serves_every_duration_and_number_in_a_bucket():
    lm = make_lm()
    generate_codes(lm, make_condition([3], 16), num_frames=4)
    before = program._advance._cache_size(), program._start._cache_size()
    for frames, length, numbers in [(11, 3, {}), (200, 16, {"temperature": 0.7, "cfg_coef": 1.5})]:
        generate_codes(lm, make_condition([length], 16), num_frames=frames, seed=frames, **numbers)
    other = make_lm()  # other weights of the same model
    generate_codes(other, make_condition([1], 16), num_frames=7, callback=lambda *_: None)
    assert (program._advance._cache_size(), program._start._cache_size()) == before
    generate_codes(lm, make_condition([3], 16), num_frames=300)
    assert program._advance._cache_size() == before[0] + 1


@pytest.mark.parametrize(
    "put",
    [
        lambda params: params,
        lambda params: jax.device_put(params, jax.devices()[0]),  # as weights from a folder are
        lambda params: jax.tree.map(np.asarray, params),
    ],
    ids=["anywhere", "tied to a device", "NumPy"],
)
def test_the_loop_is_compiled_once_and_before_there_is_a_cache(put, caplog):
    lm, condition = make_lm(), make_condition([3], 3)
    graphdef, params = nnx.split(lm)
    lm = nnx.merge(graphdef, put(params))
    jax.clear_caches()  # whichever tests came before
    with jax.log_compiles(), caplog.at_level("WARNING"):
        codes = generate_codes(lm, condition, num_frames=5)
        np.testing.assert_array_equal(codes, generate_codes(lm, condition, num_frames=5))
    compiled = re.findall(r"Finished XLA compilation of jit\((_advance|_start)\)", caplog.text)
    assert compiled == ["_start", "_advance"]


def test_the_length_of_the_cache_changes_nothing():
    lm, condition = make_lm(), make_condition([3], 3)
    run = partial(generate_codes, lm, condition, num_frames=30, prompt=random_prompt(1, 9))
    codes = run()
    lm.tuning = Tuning(cache_lengths=(40,))
    np.testing.assert_array_equal(codes, run())


@pytest.mark.parametrize("rows", [[3], [4, 2, 0]])
def test_sparing_cross_attention_changes_nothing(rows):
    """As on a TPU, where null rows stay and no weight is folded; prompt and prefill too."""
    condition, prompt = make_condition(rows, 4), random_prompt(len(rows), 5)
    lean, whole = make_lm(), make_lm()
    whole.tuning = dataclasses.replace(CPU, skip_null_rows=(), fold_short_text=())
    run = partial(generate_codes, condition=condition, num_frames=FRAMES, prompt=prompt)
    np.testing.assert_array_equal(run(lean), run(whole))
    np.testing.assert_array_equal(run(lean, cfg_coef=1.0), run(whole, cfg_coef=1.0))


@pytest.mark.parametrize("prompt", [0, 9, 25])
@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_a_cache_that_grows_changes_nothing(conditioning, prefix, prompt):
    lengths = [8, 16, 24, 40]
    lm, condition = make_lm(conditioning), make_condition([3, 2], 3, prefix=prefix)
    run = partial(generate_codes, lm, condition, num_frames=33, prompt=random_prompt(2, prompt))
    codes = run(lengths=[40])
    np.testing.assert_array_equal(codes, run(lengths=lengths))
    np.testing.assert_array_equal(codes, run(lengths=lengths, callback=lambda *_: None))
    keys, prompt_codes = example_keys(0, 2), random_prompt(2, prompt)
    pieces = list(stream_codes(
        lm, condition, num_frames=33, keys=keys, prompt=prompt_codes, chunk=5, lengths=lengths
    ))  # fmt: skip
    np.testing.assert_array_equal(codes, np.concatenate(pieces, axis=2))


def test_a_cache_that_grows_is_never_there_twice(monkeypatch):
    sizes, pad = [], program._pad_cache
    monkeypatch.setattr(program, "_pad_cache", lambda x, **how: sizes.append(x) or pad(x, **how))
    lm = make_lm(layers=2, tuning=SHORT)
    generate_codes(lm, make_condition([3], 3), num_frames=30)
    assert not sizes
    lm.tuning = GROWING
    generate_codes(lm, make_condition([3], 3), num_frames=30)
    assert [x.shape[2] for x in sizes[:: 2 * lm.config.num_layers]] == [8, 16, 24]
    assert all(x.is_deleted() for x in sizes)


def test_growth_weighs_the_cache_against_the_model():
    lm = make_lm()
    cache = nbytes(jax.eval_shape(lambda: lm.init_cache(4, 40)))
    model = nbytes(nnx.state(lm, nnx.Param))
    for above in ((0.0, cache), (cache / model, 0)):
        lm.tuning = dataclasses.replace(SHORT, grow_cache_above=above)
        assert cache_growth(lm, 4, 30) == (40,)
        assert cache_growth(lm, 5, 30) == (8, 16, 24, 40)


def test_growing_needs_no_compilation_that_its_lengths_have_had():
    lm, condition = make_lm(tuning=SHORT), make_condition([3], 3)
    for frames in (4, 12, 20, 30):
        generate_codes(lm, condition, num_frames=frames)
    before = program._advance._cache_size(), program._start._cache_size()
    generate_codes(lm, condition, num_frames=30, lengths=cache_lengths(40, SHORT))
    assert (program._advance._cache_size(), program._start._cache_size()) == before


def test_ten_seconds_have_a_cache_that_a_cpu_reads_with_all_threads():
    """One thread alone would read 512 steps, in twice the time."""
    for name in ("small", "medium", "large"):
        lm = OFFICIAL_MODELS[f"facebook/musicgen-{name}"].lm
        length = cache_lengths(500 + max(lm.delays), CPU)[-1]
        assert length * lm.dim // lm.num_heads > 32_768


def test_temperature_zero_is_greedy_and_filters_bite():
    lm, condition = make_lm(), make_condition([3], 3)
    run = partial(generate_codes, lm, condition, num_frames=FRAMES, seed=2)
    best = greedy(lm, condition, num_frames=FRAMES)
    np.testing.assert_array_equal(run(temperature=0.0), best)
    np.testing.assert_array_equal(run(top_k=1), best)
    np.testing.assert_array_equal(run(top_k=0, top_p=1e-6), best)
    free = run(top_k=0)
    assert not np.array_equal(free, best)
    np.testing.assert_array_equal(run(top_p=1.0), free)


def test_keys_are_never_used_twice():
    with jax.debug_key_reuse(True):
        generate_codes(make_lm(), make_condition([2], 2), num_frames=5)


# --- Rows of different ages, lengths and settings -------------------------------------------------

SETTINGS = [
    Sampling(),
    Sampling(use_sampling=False, cfg_coef=2.0),
    Sampling(top_k=0, top_p=0.6, temperature=0.7),
    Sampling(top_k=5, cfg_coef=1.0),
    Sampling(top_k=3, top_p=0.9, temperature=1.3, cfg_coef=4.0),
    Sampling(top_k=0, cfg_coef=0.0),
]
SLOTS = 24


@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_of_any_age_length_and_setting_share_a_program(conditioning, prefix, data):
    """Each is what it is alone, whatever its neighbours; also if the loop stops in between."""
    lm, batch = make_lm(conditioning), 3
    condition = make_condition([4, 2, 3], 4, prefix=prefix)
    rows = data.draw(st.lists(st.sampled_from(SETTINGS), min_size=batch, max_size=batch))
    frames = data.draw(st.lists(st.integers(1, 20), min_size=batch, max_size=batch))
    prompts = [data.draw(st.integers(0, n - 1)) for n in frames]
    pauses = data.draw(st.lists(st.integers(1, 30), max_size=2))
    keys = example_keys([5, 6, 7], batch)
    codes = random_prompt(batch, max(frames))
    laid = [
        decode.known_steps(codes[i : i + 1, :, : prompts[i]], frames[i], SLOTS, lm)
        for i in range(batch)
    ]
    limit = np.array(frames, np.int32) + max(CONFIG.delays)
    requests = Requests(
        np.concatenate(laid), np.array(prompts, np.int32), limit, keys, Numbers.of(rows)
    )
    together = Program(lm, condition, 2, Mode(top_k=True, nucleus=True))
    state, context = together.start(requests, prefill_length=SLOTS, slots=SLOTS)
    for count in [*pauses, SLOTS]:
        state = together.advance(state, context, count)
    np.testing.assert_array_equal(state.step, limit)
    steps = together.read(state, batch)
    for i in range(batch):
        stop = limit[i] + 1
        made = patterns.to_codes(steps[i : i + 1, :, :stop], CONFIG.delays)
        alone = decode.generate_codes(
            lm,
            jax.tree.map(lambda x, i=i: x[i : i + 1], condition),
            num_frames=frames[i],
            keys=keys[i : i + 1],
            prompt=codes[i : i + 1, :, : prompts[i]],
            sampling=rows[i],
            lengths=[SLOTS],
        )
        np.testing.assert_array_equal(made, alone)
