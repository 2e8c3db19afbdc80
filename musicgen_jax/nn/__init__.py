"""Networks that map arrays to arrays.

`lm.LM` is the language model over delayed codebooks (`patterns`). It is built from `transformer`,
`attention`, `linear` and `weights`. `folded_cross` is a second algorithm for its cross-attention,
and `lora` holds its adapters. `t5` encodes text and `encodec` encodes audio. `mert` and the three
`*_conditioner` modules turn melodies, styles and texts into a `condition.Condition`. `htdemucs`
separates stems. `axes`, `shapes` and `group_norm` serve several of them.
"""
