"""Networks: arrays in, arrays out.

`lm.LM` is the language model over delayed codebooks (`patterns`), made of `transformer`,
`attention`, `linear` and `weights`; `folded_cross` is a second algorithm for its cross-attention,
`lora` its adapters. `t5` encodes text, `encodec` audio; `mert` and the three `*_conditioner`s turn
melodies, styles and texts into a `condition.Condition`; `htdemucs` separates stems.
"""
