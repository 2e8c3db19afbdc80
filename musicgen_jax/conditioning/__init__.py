"""From a user's texts and audio to a `Condition`.

text         descriptions: tokens, T5, a projection
melody       audio to chroma, with `separator` (HTDemucs) and `chroma`
style        audio to an `excerpt` to MERT's features to tokens
audio_input  the checks of audio that a caller passes
resample     julius' resampling, under jit, for MERT
segments     overlapping segments of long audio, for the separator
"""
