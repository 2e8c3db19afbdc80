"""From a `Condition` to codes to a waveform.

settings      `Sampling` and the defaults; no jax
request       `Request`: everything but the condition, checked once
schedule      cues, and the scenes that they make
session       a piece that can be steered while it is made
piece         `generate_piece`: a request and its condition to music
windows       which frames of a long piece are generated when
window_store  finished windows on disk, to resume from
decode        one window: `stream_codes`, the loop over a plan's events
plan          the course of a window in integers
program       the compiled functions: start, advance, grow
guidance      the rows that the model runs for each example
sampling      logits to tokens: guidance, top-k, top-p
joins         the codes of windows to one waveform
scoring       logits of given codes
warmup        compiling ahead of time
progress      the progress bar
"""
