"""Makes tests/goldens/codec_training: audiocraft's own numbers for what trains a codec.

    git clone https://github.com/facebookresearch/audiocraft
    pip install torch torchaudio einops flashy numpy
    python -m tests.make_codec_training_goldens audiocraft

Random weights and sounds go through audiocraft's classes, in float32; one .npz per idea holds what
went in and what came out. audiocraft's packages import far more than is needed here, so its files
are loaded one by one, out of the checkout.
"""

import argparse
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

from tests.helpers import paths

GOLDENS = paths.GOLDENS / "codec_training"
DISCRIMINATOR = {
    "filters": 3,
    "n_ffts": [64, 128, 33],
    "hop_lengths": [16, 48, 11],
    "win_lengths": [64, 96, 33],
    "activation": "LeakyReLU",
    "activation_params": {"negative_slope": 0.3},
}


def load(checkout: Path) -> None:
    """Makes audiocraft's packages importable without what their __init__ files import."""
    for name in ("audiocraft", "adversarial", "losses", "quantization", "modules"):
        path = checkout / "audiocraft" / ("" if name == "audiocraft" else name)
        package = types.ModuleType(name if name == "audiocraft" else f"audiocraft.{name}")
        package.__path__ = [str(path)]
        sys.modules[package.__name__] = package
    # flashy asks dora for the number of processes alone.
    dora, distrib = types.ModuleType("dora"), types.ModuleType("dora.distrib")
    distrib.rank, distrib.world_size = lambda: 0, lambda: 1  # type: ignore[attr-defined]
    distrib.init = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    dora.distrib = distrib  # type: ignore[attr-defined]
    sys.modules |= {"dora": dora, "dora.distrib": distrib}
    spec = importlib.util.find_spec("flashy")
    flashy = types.ModuleType("flashy")
    flashy.__path__ = list(spec.submodule_search_locations)  # type: ignore[union-attr]
    sys.modules["flashy"] = flashy
    for name in ("distrib", "utils"):
        setattr(flashy, name, importlib.import_module(f"flashy.{name}"))
    flashy.averager = flashy.utils.averager  # type: ignore[attr-defined]
    # torchaudio's compiled part fits one version of torch alone, and no spectrogram needs it.
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    extension.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
    sys.modules[extension.__name__] = extension
    conv = importlib.import_module("audiocraft.modules.conv")
    vars(sys.modules["audiocraft.modules"]).update(vars(conv))


def randomize(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Parameters of standard deviation 0.3; lengths about 1.7, lest signals fade layer by layer."""
    for name, parameter in module.named_parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        if name.endswith("weight_g"):
            parameter.data += 1.7


def sounds(generator: torch.Generator, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A sound and a worse version of it."""
    real = 0.3 * torch.randn(shape, generator=generator)
    return real, 0.7 * real + 0.1 * torch.randn(shape, generator=generator)


def save(name: str, **arrays) -> None:
    """Writes numbers as they are, tensors without their gradients."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    plain = {
        k: v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v)
        for k, v in arrays.items()
    }
    np.savez_compressed(GOLDENS / f"{name}.npz", **plain)


def discriminator(generator: torch.Generator) -> None:
    """Weights, logits, feature maps, losses of both sides and their gradients."""
    msstftd = importlib.import_module("audiocraft.adversarial.discriminators.msstftd")
    losses = importlib.import_module("audiocraft.adversarial.losses")
    net = msstftd.MultiScaleSTFTDiscriminator(in_channels=2, **DISCRIMINATOR)
    randomize(net, generator)
    real, fake = sounds(generator, (2, 2, 401))
    out = {f"weights/{name}": value for name, value in net.state_dict().items()}
    out |= {"real": real, "fake": fake}
    logits, maps = net(fake)
    out |= {f"logits/{i}": value for i, value in enumerate(logits)}
    out |= {f"maps/{i}/{j}": m for i, layers in enumerate(maps) for j, m in enumerate(layers)}
    for kind in losses.ADVERSARIAL_LOSSES:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # leaves the weights, keeps gradients
        wrapper = losses.AdversarialLoss(
            net,
            optimizer,
            losses.get_adv_criterion(kind),
            losses.get_real_criterion(kind),
            losses.get_fake_criterion(kind),
            losses.FeatureMatchingLoss(),
        )
        out[f"{kind}/d_loss"] = wrapper.train_adv(fake, real)
        if kind == "hinge":
            grads = {f"grads/{n}": p.grad.clone() for n, p in net.named_parameters()}
        output = fake.clone().requires_grad_()
        adv, feat = wrapper(output, real)
        out |= {f"{kind}/adv": adv, f"{kind}/feat": feat}
        (out[f"{kind}/adv_grad"],) = torch.autograd.grad(adv, [output], retain_graph=True)
        (out[f"{kind}/feat_grad"],) = torch.autograd.grad(feat, [output])
    save("discriminator", **out, **grads)


def balancer(generator: torch.Generator) -> None:
    """Three losses over several steps, balanced in four ways."""
    module = importlib.import_module("audiocraft.losses.balancer")
    weights = {"a": 2.0, "b": 0.5, "c": 1.5}
    ways = {
        "item": {"per_batch_item": True, "ema_decay": 0.9},
        "batch": {"per_batch_item": False, "ema_decay": 0.9, "total_norm": 2.5},
        "plain": {"per_batch_item": True, "ema_decay": 1.0},
        "unbalanced": {"balance_grads": False},
    }
    steps = [sounds(generator, (3, 2, 17)) for _ in range(4)]
    targets, outputs = (torch.stack(each) for each in zip(*steps, strict=True))
    out = {"outputs": outputs, "targets": targets}
    for way, kwargs in ways.items():
        balance = module.Balancer(weights, monitor=True, **kwargs)
        for i, (target, output) in enumerate(steps):
            output = output.clone().requires_grad_()
            y = output * 1.0  # the balancer wants the output of something
            y.retain_grad()
            losses = {
                "a": (y - target).abs().mean(),
                "b": 100 * (y - target).pow(2).mean() * (i + 1),
                "c": (y * target).mean() - y[0].mean(),
            }
            out[f"{way}/{i}/loss"] = balance.backward(losses, y)
            out[f"{way}/{i}/grad"] = output.grad
            out |= {f"{way}/{i}/{k}": v for k, v in balance.metrics.items()}
    save("balancer", **out)


def reconstruction(generator: torch.Generator) -> None:
    """Losses of waveforms and their gradients."""
    spec = importlib.import_module("audiocraft.losses.specloss")
    stft = importlib.import_module("audiocraft.losses.stftloss")
    sisnr = importlib.import_module("audiocraft.losses.sisnr")
    rate = 8000
    sizes = {"n_ffts": [64, 128], "hop_lengths": [12, 25], "win_lengths": [60, 101]}
    losses = {
        "l1": torch.nn.L1Loss(),
        "l2": torch.nn.MSELoss(),
        "mel": spec.MelSpectrogramL1Loss(rate, n_mels=64, f_min=64),
        "msspec": spec.MultiScaleMelSpectrogramLoss(
            rate, n_mels=64, f_min=64, normalized=True, alphas=False
        ),
        "msspec_alphas": spec.MultiScaleMelSpectrogramLoss(rate, range_start=5, range_end=9),
        "mrstft": stft.MRSTFTLoss(factor_sc=0.5, factor_mag=0.5),
        "mrstft_small": stft.MRSTFTLoss(factor_sc=0.3, factor_mag=0.2, **sizes),
        "sisnr": sisnr.SISNR(rate, segment=5.0),
        "sisnr_pieces": sisnr.SISNR(rate, segment=0.05),
        # segment=None, which means the same, fails at an assertion about the wrong axis.
        "sisnr_whole": sisnr.SISNR(rate, segment=1733 / rate, overlap=0.0),
    }
    target, fake = sounds(generator, (2, 2, 1733))
    out = {"target": target, "output": fake}
    for name, loss in losses.items():
        output = fake.clone().requires_grad_()
        value = loss(output, target)
        (out[f"{name}/grad"],) = torch.autograd.grad(value.sum(), [output])
        out[f"{name}/loss"] = value.squeeze()
    save("reconstruction", **out)


def codebooks(generator: torch.Generator) -> None:
    """A residual quantizer in training: updates, codes, commitment, straight-through gradients."""
    core = importlib.import_module("audiocraft.quantization.core_vq")
    # Most codes are below the threshold: audiocraft's replacement of dead codes changes nothing.
    rvq = core.ResidualVectorQuantization(
        dim=5, codebook_size=7, num_quantizers=3, decay=0.9, threshold_ema_dead_code=2.0
    )
    for layer in rvq.layers:
        book = layer._codebook
        book.embed.data = torch.randn(7, 5, generator=generator)
        book.cluster_size.data = 3 * torch.rand(7, generator=generator)
        book.embed_avg.data = book.embed * book.cluster_size[:, None]
    rvq.train()
    out = {}
    for i, n_q in enumerate((3, 2, 3)):
        for k, layer in enumerate(rvq.layers):
            book = layer._codebook
            out |= {f"{i}/embed/{k}": book.embed.clone(), f"{i}/total/{k}": book.embed_avg.clone()}
            out[f"{i}/count/{k}"] = book.cluster_size.clone()
        x = torch.randn((2, 5, 11), generator=generator).requires_grad_()
        quantized, codes, losses = rvq(x, n_q=n_q)
        pull = torch.randn(quantized.shape, generator=generator)
        (grad,) = torch.autograd.grad((quantized * pull).sum() + 3 * losses.mean(), [x])
        out |= {
            f"{i}/n_q": n_q,
            f"{i}/latents": x,
            f"{i}/quantized": quantized,
            f"{i}/codes": codes,
            f"{i}/losses": losses.squeeze(1),
            f"{i}/pull": pull,
            f"{i}/grad": grad,
        }
    for k, layer in enumerate(rvq.layers):
        book = layer._codebook
        out |= {f"3/embed/{k}": book.embed, f"3/total/{k}": book.embed_avg}
        out[f"3/count/{k}"] = book.cluster_size
    save("codebooks", **out)


def kmeans(generator: torch.Generator) -> None:
    """Rounds of k-means from given centres, one cluster empty."""
    core = importlib.import_module("audiocraft.quantization.core_vq")
    vectors = torch.randn((61, 3), generator=generator)
    start = torch.randn((6, 3), generator=generator)
    start[4] = 50.0
    core.sample_vectors = lambda samples, num: start
    out = {"vectors": vectors, "start": start}
    for rounds in (1, 4):
        out[f"means/{rounds}"], out[f"bins/{rounds}"] = core.kmeans(vectors, 6, rounds)
    save("kmeans", **out)


def weight_norm(generator: torch.Generator) -> None:
    """Weight-normed convolutions: their two parts and the weight."""
    conv = importlib.import_module("audiocraft.modules.conv")
    layers = {
        "conv": conv.NormConv1d(3, 4, 5, norm="weight_norm"),
        "convtr": conv.NormConvTranspose1d(3, 4, 6, 3, norm="weight_norm"),
    }
    out = {}
    for name, layer in layers.items():
        randomize(layer, generator)
        layer(torch.zeros(1, 3, 9))  # computes the weight
        inner = layer.conv if name == "conv" else layer.convtr
        out |= {f"{name}/g": inner.weight_g, f"{name}/v": inner.weight_v}
        out[f"{name}/weight"] = inner.weight
    save("weight_norm", **out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of audiocraft")
    load(parser.parse_args().checkout)
    for make in (discriminator, balancer, reconstruction, codebooks, kmeans, weight_norm):
        make(torch.Generator().manual_seed(len(make.__name__)))
