"""The T5 encoder's table, in the order of the forward pass. T5 comes only from transformers."""

from musicgen_jax.config import T5Config
from musicgen_jax.convert.rules import Rule, Table
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

_ATTENTION, _FFN = "encoder.block.{i}.layer.0", "encoder.block.{i}.layer.1"
TABLE = Table(
    rules=(
        Rule("shared/embedding", "shared.weight"),
        Rule(
            "relative_attention_bias/embedding",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        Rule("layers/{i}/attention_norm/scale", f"{_ATTENTION}.layer_norm.weight"),
        Rule("layers/{i}/q/weight", f"{_ATTENTION}.SelfAttention.q.weight"),
        Rule("layers/{i}/k/weight", f"{_ATTENTION}.SelfAttention.k.weight"),
        Rule("layers/{i}/v/weight", f"{_ATTENTION}.SelfAttention.v.weight"),
        Rule("layers/{i}/o/weight", f"{_ATTENTION}.SelfAttention.o.weight"),
        Rule("layers/{i}/ffn_norm/scale", f"{_FFN}.layer_norm.weight"),
        Rule("layers/{i}/wi/weight", f"{_FFN}.DenseReluDense.wi.weight"),
        Rule("layers/{i}/wo/weight", f"{_FFN}.DenseReluDense.wo.weight"),
        Rule("final_norm/scale", "encoder.final_layer_norm.weight"),
    ),
    ignored={
        r"decoder\..*": "only the encoder reads the prompt",
        r"lm_head\.weight": "the decoder's",
    },
)


def table(part: Part) -> Table:
    """The table, with the name that this file uses for the token embedding.

    `shared.weight` and `encoder.embed_tokens.weight` are the same tensor; a file can contain
    either or both.
    """
    alias = r"encoder\.embed_tokens\.weight"
    if "shared.weight" in part.tensors:
        ignored = {**TABLE.ignored, alias: "the same tensor as shared.weight"}
        return Table(TABLE.rules, TABLE.aliases, ignored)
    return Table(TABLE.rules, ((alias, "shared.weight"),), TABLE.ignored)


def derive_config(part: Part) -> T5Config:
    """Takes sizes from the tensors, and everything else from the settings.

    Raises:
      UserError: the model is not a T5 of version 1.0, or tensors that give its size are missing.
    """
    part.check("t5")
    rules, tensors = table(part), part.tensors
    shapes = [
        rules.shape(tensors, path)
        for path in (
            "shared/embedding",
            "relative_attention_bias/embedding",
            "layers/0/q/weight",
            "layers/0/wi/weight",
        )
    ]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise UserError(f"{part.origin}: the weights of T5 must be matrices")
    (vocab_size, d_model), (buckets, num_heads), (inner, _), (d_ff, _) = shapes
    return T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=d_ff,
        num_layers=rules.count(tensors, f"{_ATTENTION}.SelfAttention.q.weight"),
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=part.number("relative_attention_max_distance", 128),
        layer_norm_epsilon=part.number("layer_norm_epsilon", 1e-6),
    )
