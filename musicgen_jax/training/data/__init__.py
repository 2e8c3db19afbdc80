"""Training data: audio files and their metadata, segments, prompts and pre-encoded codes.

This does not use grain. An item depends only on (seed, step, row), so there is no iterator state to
save, and one function covers shuffling, sharding over hosts and skipping.
"""
