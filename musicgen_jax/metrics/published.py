"""The figures that the authors published for their models, to show next to measured ones.

From audiocraft's model cards (MUSICGEN_MODEL_CARD.md and MAGNET_MODEL_CARD.md): MusicCaps, 10 s,
the released models. `chroma` was measured on an internal set of 1000 clips of 30 s. They publish no
figures for the stereo and style models and for melody-large.
"""

SOURCE = "audiocraft's model card"
FIGURES: dict[str, dict[str, float]] = {
    "musicgen-small": {"fad": 4.88, "kld": 1.42, "clap": 0.27},
    "musicgen-medium": {"fad": 5.14, "kld": 1.38, "clap": 0.28},
    "musicgen-large": {"fad": 5.48, "kld": 1.37, "clap": 0.28},
    "musicgen-melody": {"fad": 4.93, "kld": 1.41, "clap": 0.27, "chroma": 0.44},
    "magnet-small-10secs": {"fad": 4.22, "kld": 1.11, "clap": 0.28},
    "magnet-medium-10secs": {"fad": 4.61, "kld": 1.14, "clap": 0.28},
    "magnet-small-30secs": {"fad": 4.35, "kld": 1.17, "clap": 0.28},
    "magnet-medium-30secs": {"fad": 4.63, "kld": 1.20, "clap": 0.28},
}


def figures(model: str) -> dict[str, float]:
    """By metric, for a model's name such as "facebook/musicgen-small"; {} if there are none."""
    return FIGURES.get(model.rsplit("/", 1)[-1], {})
