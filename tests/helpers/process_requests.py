"""The request that several processes serve together, and one alone."""

TEXTS = ["a calm waltz", "drums", None]


SETTINGS = {"duration": 0.3, "seed": 5}
