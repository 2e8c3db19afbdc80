"""Copies a transformers EnCodec into our tree by hand, independently of the converter."""

import jax.numpy as jnp

from musicgen_jax.config import EncodecConfig


def from_transformers(model, config: EncodecConfig) -> dict:
    """The parameters of `Encodec(config)` with the weights of a transformers EncodecModel."""
    return {
        "encoder": {"layers": _layers(model.encoder)},
        "decoder": {"layers": _layers(model.decoder)},
        "quantizer": {
            "embed": jnp.stack(
                [_array(layer.codebook.embed) for layer in model.quantizer.layers[: config.n_q]]
            )
        },
    }


def _array(tensor) -> jnp.ndarray:
    return jnp.asarray(tensor.detach().numpy().copy())


def _conv(module) -> dict:
    weight = _array(module.conv.weight)  # the parametrization folds the weight norm
    transposed = type(module).__name__ == "EncodecConvTranspose1d"
    axes = (2, 0, 1) if transposed else (2, 1, 0)
    tree = {"weight": weight.transpose(axes), "bias": _array(module.conv.bias)}
    if module.norm_type == "time_group_norm":
        tree["norm"] = {"scale": _array(module.norm.weight), "bias": _array(module.norm.bias)}
    return tree


def _lstm(lstm) -> dict:
    return {
        str(i): {
            "weight_ih": _array(getattr(lstm, f"weight_ih_l{i}")),
            "weight_hh": _array(getattr(lstm, f"weight_hh_l{i}")),
            "bias": _array(getattr(lstm, f"bias_ih_l{i}")) + _array(getattr(lstm, f"bias_hh_l{i}")),
        }
        for i in range(lstm.num_layers)
    }


def _layers(side) -> dict:
    tree = {}
    for i, module in enumerate(side.layers):
        name = type(module).__name__
        if name in ("EncodecConv1d", "EncodecConvTranspose1d"):
            tree[str(i)] = _conv(module)
        elif name == "EncodecLSTM":
            tree[str(i)] = {"lstm": _lstm(module.lstm)}
        elif name == "EncodecResnetBlock":
            tree[str(i)] = {"block": {k: _conv(module.block[int(k)]) for k in ("1", "3")}}
            if type(module.shortcut).__name__ == "EncodecConv1d":
                tree[str(i)]["shortcut"] = _conv(module.shortcut)
    return tree
