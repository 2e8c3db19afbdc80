"""From a `Condition` to codes to a waveform."""
