"""MusicGen in JAX: text in, music out."""
