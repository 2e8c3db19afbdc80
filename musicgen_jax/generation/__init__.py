"""From a `Condition` to codes to a waveform.

settings      `Sampling` and the defaults; no jax
request       `Request`: everything but the condition, checked once
piece         `generate_piece`: a request and its condition to music
windows       which frames of a long piece are generated when
window_store  finished windows on disk, to resume from
plan, decode  one window: the plan in integers, the compiled program, the loop
sampling      logits to tokens: guidance, top-k, top-p
joins         the codes of windows to one waveform
scoring       logits of given codes
warmup        compiling ahead of time
progress      the progress bar
"""
