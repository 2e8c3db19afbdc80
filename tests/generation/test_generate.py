"""Generation: the loop against a plain reference, and what it promises about determinism."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.errors import UserError
from musicgen_jax.generation import decode
from musicgen_jax.generation.decode import example_keys, generate_codes
from musicgen_jax.nn import patterns
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime.memory import nbytes
from tests.helpers.lm_models import CONFIG, FORMS, make_condition, make_lm

FRAMES = 9
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
    lm, condition = make_lm(), make_condition([4, 2], 4)
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
        codes, generate_codes(lm, Condition(), num_frames=FRAMES, seed=example_keys(3, 2))
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


def test_chunks_and_callback(monkeypatch):
    lm, condition = make_lm(), make_condition([3], 3)
    run = partial(generate_codes, lm, condition, num_frames=23, seed=1, prompt=random_prompt(1, 2))
    calls = []
    codes = run(callback=lambda done, total: calls.append((done, total)))
    total = 23 + max(CONFIG.delays) - 2
    assert calls == [(10, total), (20, total), (total, total)]
    np.testing.assert_array_equal(codes, run())
    monkeypatch.setattr(decode, "_CALLBACK_STEPS", 3)
    np.testing.assert_array_equal(codes, run(callback=lambda *_: None))


def test_one_compilation_serves_every_duration_and_number_in_a_bucket():
    lm = make_lm()
    generate_codes(lm, make_condition([3], 3), num_frames=4)
    before = decode._decode._cache_size(), decode._start._cache_size()
    for frames, length, numbers in [(11, 3, {}), (200, 16, {"temperature": 0.7, "cfg_coef": 1.5})]:
        generate_codes(lm, make_condition([3], length), num_frames=frames, seed=frames, **numbers)
    other = make_lm()  # other weights of the same model
    generate_codes(other, make_condition([1], 5), num_frames=7, callback=lambda *_: None)
    assert (decode._decode._cache_size(), decode._start._cache_size()) == before
    generate_codes(lm, make_condition([3], 3), num_frames=300)
    assert decode._decode._cache_size() == before[0] + 1


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
    compiled = re.findall(r"Finished XLA compilation of jit\((_decode|_start)\)", caplog.text)
    assert compiled == ["_start", "_decode"]


def test_the_length_of_the_buffers_changes_nothing(monkeypatch):
    lm, condition = make_lm(), make_condition([3], 3)
    run = partial(generate_codes, lm, condition, num_frames=30, prompt=random_prompt(1, 9))
    codes = run()
    monkeypatch.setattr(decode, "_LENGTHS", (40,))
    monkeypatch.setattr(decode, "_prefill_length", lambda steps: steps)
    np.testing.assert_array_equal(codes, run())


@pytest.mark.parametrize("rows", [[3], [4, 2, 0]])
def test_sparing_cross_attention_changes_nothing(rows):
    """As on a TPU, where null rows stay and no weight is folded; prompt and prefill too."""
    condition, prompt = make_condition(rows, 4), random_prompt(len(rows), 5)
    lean, whole = make_lm(), make_lm(lean_cross=False)
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
    pieces = list(decode.stream_codes(
        lm, condition, num_frames=33, prompt=random_prompt(2, prompt), chunk=5, lengths=lengths
    ))  # fmt: skip
    np.testing.assert_array_equal(codes, np.concatenate(pieces, axis=2))


def test_a_cache_grows_if_it_outweighs_the_model(monkeypatch):
    monkeypatch.setattr(decode, "_LENGTHS", (8, 16, 24, 40))
    lm = make_lm()
    assert not decode.outweighs(lm, 2, 40)
    assert not decode.outweighs(lm, 10_000, 40)  # more than the model, but still small
    monkeypatch.setattr(decode, "_GROWN", {"default": (1.0, 0)})
    assert not decode.outweighs(lm, 2, 40)
    assert decode.outweighs(lm, 10_000, 40)
    sizes = []
    longer = decode._longer
    monkeypatch.setattr(decode, "_longer", lambda x, **how: sizes.append(x) or longer(x, **how))
    generate_codes(lm, make_condition([3], 3), num_frames=30)
    assert not sizes
    monkeypatch.setattr(decode, "outweighs", lambda *_: True)
    generate_codes(lm, make_condition([3], 3), num_frames=30)
    assert [x.shape[2] for x in sizes[:: 2 * lm.config.num_layers]] == [8, 16, 24]
    assert all(x.is_deleted() for x in sizes)  # there is never a second cache


@pytest.mark.parametrize(
    ("outweighed", "lengths"),
    [(300, [256]), (255, [256]), (127, [128, 256]), (63, [64, 128, 256])],
)
def test_a_heavy_cache_begins_shorter_on_a_cpu(outweighed, lengths, monkeypatch):
    lm = make_lm()
    least = nbytes(jax.eval_shape(lambda: lm.init_cache(4, outweighed)))
    monkeypatch.setattr(decode, "_GROWN", {"default": (0.0, least)})
    assert decode.growth(lm, 4, 100) == lengths
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert decode.growth(lm, 4, 100) == [256]


def test_growing_needs_no_compilation_that_its_lengths_have_had(monkeypatch):
    monkeypatch.setattr(decode, "_LENGTHS", (8, 16, 24, 40))
    lm, condition = make_lm(), make_condition([3], 3)
    for frames in (4, 12, 20, 30):
        generate_codes(lm, condition, num_frames=frames)
    before = decode._decode._cache_size(), decode._start._cache_size()
    generate_codes(lm, condition, num_frames=30, lengths=decode.cache_lengths(40))
    assert (decode._decode._cache_size(), decode._start._cache_size()) == before


def test_lengths_are_few_and_sufficient():
    caches = {n: decode._cache_length(n) for n in range(1, 3000)}
    assert all(c >= n for n, c in caches.items())
    assert caches[1503] == 1504
    assert len(set(caches.values())) == 4 + 4  # 1536, 2048, 2560, 3072
    prefills = {n: decode._prefill_length(n) for n in range(1, 1501)}
    assert all(n <= p < max(2 * n, 17, n + 256) for n, p in prefills.items())
    assert len(set(prefills.values())) == 10  # 16 to 256 doubling, then five more
    assert decode._prefill_length(0) == 0


def test_ten_seconds_have_a_cache_that_a_cpu_reads_with_all_threads():
    """See `generate._LENGTHS`; 512 steps would be read by one thread, in twice the time."""
    for name in ("small", "medium", "large"):
        lm = OFFICIAL_MODELS[f"facebook/musicgen-{name}"].lm
        length = decode.cache_lengths(500 + max(lm.delays))[-1]
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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": [1, 2, 3]}, "3 seeds for a batch of 2"),
        ({"prompt": random_prompt(2, 9)}, "num_frames must be larger"),
        ({"prompt": random_prompt(1, 2)}, r"must be \[2, 3, frames\]"),
        ({"prompt": random_prompt(2, 2) + CONFIG.card}, "prompt codes must lie in 0..12"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    kwargs = {"num_frames": FRAMES} | kwargs
    with pytest.raises(UserError, match=message):
        generate_codes(make_lm(), make_condition([2, 2], 2), **kwargs)
