"""Music to train on: files and what is known of them, segments, prompts, codes encoded once.

Own code and not grain: an item depends on (seed, step, row) alone, so there is no iterator whose
state would need saving, and shuffling, sharding over hosts and skipping come to one function.
"""
