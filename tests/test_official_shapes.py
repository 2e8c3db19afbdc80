"""The official models' sizes, by shapes alone: nothing is allocated."""

import math

import jax
import pytest

from musicgen_jax.config import (
    ENCODEC_32KHZ,
    OFFICIAL_MODELS,
    T5_BASE,
    HTDemucsConfig,
    MertConfig,
)
from musicgen_jax.convert import encodec
from musicgen_jax.convert.pipeline import abstract_params

# Elements of audiocraft's state_dict.bin, from the sizes of the released files.
TEXT_MODELS = {
    "facebook/musicgen-small": 420_371_456,
    "facebook/musicgen-medium": 1_838_737_920,
    "facebook/musicgen-large": 3_256_956_928,
    "facebook/musicgen-stereo-small": 437_152_768,
    "facebook/musicgen-stereo-medium": 1_863_909_888,
    "facebook/musicgen-stereo-large": 3_290_519_552,
}
# The same of the others, which also hold the melody's projection and its window, or the style
# conditioner: the language model proper is the rest.
MELODY_MODELS = {
    "facebook/musicgen-melody": 1_385_641_984,
    "facebook/musicgen-melody-large": 2_451_496_960,
    "facebook/musicgen-stereo-melody": 1_410_813_952,
    "facebook/musicgen-stereo-melody-large": 2_485_059_584,
}
STYLE_MODELS = {"facebook/musicgen-style": 1_418_268_167}
WINDOW = 16_384


def elements(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def lm_without(tree, *conditioners: str) -> int:
    """Elements of the language model and its text conditioner."""
    return elements({name: part for name, part in tree.items() if name not in conditioners})


def test_all_official_models_are_covered():
    assert set(OFFICIAL_MODELS) == {*TEXT_MODELS, *MELODY_MODELS, *STYLE_MODELS}


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_language_model(name):
    config = OFFICIAL_MODELS[name].lm
    tree = abstract_params("lm", config)
    ours = lm_without(tree, "chroma_conditioner")
    if name in TEXT_MODELS:
        assert ours == elements(tree) == TEXT_MODELS[name]
    elif name in MELODY_MODELS:
        projection = config.chroma_bins * config.dim + config.dim
        assert ours == MELODY_MODELS[name] - WINDOW - projection
    else:
        style = config.style
        # Of each book: inited, cluster_size, embed_avg; of the batch norm: num_batches_tracked.
        training_state = style.n_q * (1 + style.bins + style.bins * style.dim) + 1
        assert ours == STYLE_MODELS[name] - training_state


def test_t5():
    assert elements(abstract_params("t5", T5_BASE)) == 109_628_544


def test_mert():
    """As many as transformers' HubertModel has: weight norm's magnitudes and the mask's vector."""
    config = MertConfig()
    assert elements(abstract_params("mert", config)) + 128 + config.dim == 94_371_712
    assert config.num_frames(3 * config.sample_rate) == 224


def test_separator():
    """As many as demucs' own HTDemucs has with the released settings."""
    assert elements(abstract_params("separator", HTDemucsConfig())) == 41_984_456


def test_encodec():
    """The file's counts come back when weight norm and the LSTM's two biases are unfolded."""
    config = ENCODEC_32KHZ
    tree = abstract_params("encodec", config)
    magnitudes = 0
    for side in ("encoder", "decoder"):
        upsampling = {
            int(rule.target.split("/")[2])
            for rule in encodec.table(config).rules
            if rule.transform is encodec.transposed_convolution
        }
        for index, layer in tree[side]["layers"].items():
            convolutions = layer["block"].values() if "block" in layer else [layer]
            for conv in convolutions:
                if "weight" in conv:
                    # Torch's first axis: of a transposed convolution that is the input.
                    transposed = side == "decoder" and int(index) in upsampling
                    magnitudes += conv["weight"].shape[1 if transposed else 2]
    biases = sum(
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if "lstm" in str(path) and path[-1].key == "bias"
    )
    books = elements(tree["quantizer"])
    assert books == config.n_q * config.bins * config.dimension
    parameters = elements(tree) - books + magnitudes + biases
    assert parameters == 56_884_674
    training_state = config.n_q * (1 + config.bins) + books  # inited, cluster_size, embed_avg
    assert parameters + books + training_state == 58_990_022
