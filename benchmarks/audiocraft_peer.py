"""The language model of audiocraft itself, from a checkout of its repository, as a peer to measure.

audiocraft pins releases of torch and xformers that install on few machines. Besides torch, einops,
omegaconf and transformers, generation calls only one imported function, xformers' `unbind`, which
torch has too. Stand-ins replace all other imports. Attention is torch's own
(`set_efficient_attention_backend("torch")`).
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from musicgen_jax.config import LMConfig

_UNUSED = (
    "av", "demucs", "dora", "encodec", "flashy", "hydra", "julius", "laion_clap", "librosa",
    "num2words", "soundfile", "spacy", "torchaudio", "torchdiffeq", "torchmetrics", "torchvision",
    "xformers",
)  # fmt: skip


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are imported but not used, installed or not."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in _UNUSED or fullname.startswith("audiocraft.solvers"):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self._attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def _attribute(name: str):
        import torch

        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name, unbind=torch.unbind)


def generation(
    checkout: Path, config: LMConfig, dtype: str, batch: int, steps: int, tokens: int
) -> Callable[[], None]:
    """A run of `LMModel.generate` with random weights, guidance 3 and top-k 250.

    Args:
      checkout: of github.com/facebookresearch/audiocraft.
      config: a language model conditioned on text.
      dtype: of weights and computation.
      batch: number of clips.
      steps: number of steps.
      tokens: length of the text. Its vectors are random; no text encoder runs.
    """
    import torch
    import transformers  # noqa: F401  # before the stand-ins: it looks for some of those modules

    sys.meta_path.insert(0, _StandIns())
    sys.path.insert(0, str(checkout))
    from audiocraft.models.lm import LMModel
    from audiocraft.modules import conditioners, transformer
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

    transformer.set_efficient_attention_backend("torch")

    class Vectors(conditioners.TextConditioner):
        """Returns the same random vectors for every text, and masked ones without a text."""

        def tokenize(self, x):
            return torch.tensor([text is not None for text in x])

        def forward(self, inputs):
            generator = torch.Generator().manual_seed(0)
            vectors = torch.randn(1, tokens, self.dim, generator=generator)
            given = inputs[:, None].expand(-1, tokens)
            vectors = self.output_proj(vectors.to(self.output_proj.weight.dtype))
            return vectors * given[..., None], given.int()

    text = {"description": Vectors(config.text_dim, config.dim)}
    sources = {"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}
    lm = LMModel(
        DelayedPatternProvider(config.n_q, delays=list(config.delays)),
        conditioners.ConditioningProvider(text),
        conditioners.ConditionFuser(sources),
        n_q=config.n_q,
        card=config.card,
        dim=config.dim,
        num_heads=config.num_heads,
        hidden_scale=config.ffn_dim // config.dim,
        norm="layer_norm",
        norm_first=True,
        bias_proj=False,
        cfg_coef=3.0,
        # Of the transformer, as config/model/lm/musicgen_lm.yaml has them.
        num_layers=config.num_layers,
        causal=True,
        custom=False,
        memory_efficient=True,
        attention_as_float32=False,
        cross_attention=True,
        bias_ff=False,
        bias_attn=False,
        activation="gelu",
        dropout=0.0,
    ).eval()
    lm = lm.to(getattr(torch, dtype))
    attributes = [
        conditioners.ConditioningAttributes(text={"description": "a tune"}) for _ in range(batch)
    ]
    frames = steps - max(config.delays)

    @torch.no_grad()
    def run() -> None:
        codes = lm.generate(
            None, attributes, max_gen_len=frames, top_k=min(250, config.card), use_sampling=True
        )
        assert codes.shape == (batch, config.n_q, frames)

    return run
