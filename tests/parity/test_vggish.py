"""VGGish against the same network in torch, through torchvggish's own file format."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from musicgen_jax import audio  # noqa: E402
from musicgen_jax.commands import cli  # noqa: E402
from musicgen_jax.convert import convert  # noqa: E402
from musicgen_jax.convert import vggish as table  # noqa: E402
from musicgen_jax.convert.inverse import invert_table  # noqa: E402
from musicgen_jax.convert.pipeline import abstract_params  # noqa: E402
from musicgen_jax.errors import UserError  # noqa: E402
from musicgen_jax.metrics.vggish import Vggish, examples, prepare  # noqa: E402
from musicgen_jax.storage import checkpoint  # noqa: E402
from tests.helpers.tolerance import assert_close  # noqa: E402

CHANNELS, HIDDEN, DIM = (3, 5, 4, 7, 6, 8), 18, 12  # even: `linear` would halve such


class Reference(torch.nn.Module):
    """The network in torch, with torchvggish's names."""

    def __init__(self, channels=CHANNELS, hidden=HIDDEN, dim=DIM):
        super().__init__()
        layers, before = [], 1
        for i, width in enumerate(channels):
            layers += [torch.nn.Conv2d(before, width, 3, padding=1), torch.nn.ReLU()]
            layers += [torch.nn.MaxPool2d(2)] if i in (0, 1, 3, 5) else []
            before = width
        self.features = torch.nn.Sequential(*layers)
        self.embeddings = torch.nn.Sequential(
            torch.nn.Linear(24 * before, hidden), torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden), torch.nn.ReLU(),
            torch.nn.Linear(hidden, dim),
        )  # fmt: skip

    def forward(self, x):
        """[B, 96, 64] to [B, dim]."""
        maps = self.features(x[:, None]).permute(0, 2, 3, 1)
        return self.embeddings(maps.flatten(1))


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    network = Reference().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    """Converted from a file in the old format, as the published one."""
    path = tmp_path_factory.mktemp("vggish")
    state = reference.state_dict()
    torch.save(state, path / "vggish.pth", _use_new_zipfile_serialization=False)
    convert(path / "vggish.pth", path / "ours")
    return path / "ours"


def signals():
    rng = np.random.default_rng(0)
    t = np.arange(3 * 44100) / 44100
    clicks = np.zeros((1, 50_001), np.float32)
    clicks[:, ::4000] = 1
    return {
        "music": (np.stack([np.sin(440 * t), np.sign(np.sin(660 * t))]) * 0.4, 44100),
        "noise": (rng.normal(0, 0.1, (1, 41_234)), 16000),
        "clicks": (clicks, 32000),
        "silence": (np.zeros((1, 32_000)), 32000),
        "negative": (-np.abs(rng.normal(0, 0.2, (1, 40_000))), 16000),
    }


@pytest.mark.parametrize("protocol", ["audiocraft", "fadtk"])
@pytest.mark.parametrize("name", list(signals()))
def test_embeddings(reference, folder, protocol, name):
    wav, rate = signals()[name]
    wav = wav.astype(np.float32)
    ours = Vggish.from_pretrained(folder, protocol)
    rows = examples(prepare(wav, rate, ours.rule), ours.rule)
    with torch.no_grad():
        expected = reference(torch.from_numpy(rows)).numpy()
    got = ours.embed(wav, rate)
    assert got.dtype == np.float32
    assert_close(got, expected, 2e-5)


def test_the_table_turns_back(reference, folder):
    config = checkpoint.load_info(folder).parts["vggish"]
    params = checkpoint.load_params(folder, "vggish", abstract_params("vggish", config))
    back = invert_table(table.TABLE, params, "vggish")
    assert back.keys() == reference.state_dict().keys()
    for key, tensor in reference.state_dict().items():
        np.testing.assert_array_equal(back[key], tensor.numpy())


def test_the_command(folder, tmp_path, capsys):
    for name, (wav, rate) in signals().items():
        audio.write(tmp_path / f"clips/{name}.wav", wav.astype(np.float32), rate)
    audio.write(tmp_path / "clips/short.wav", np.ones((1, 9000), np.float32), 16000)
    words = ["evaluate", "--audio", tmp_path / "clips", "--reference", tmp_path / "clips"]
    words += ["--metrics", "fad,chroma"]
    assert cli.main([str(w) for w in (*words, "--vggish", folder)]) == 0
    out = capsys.readouterr().out
    assert "(vggish, audiocraft, " in out
    assert "left out of fad and kad: short; the first: 0.56 s are too short" in out
    assert cli.main([str(w) for w in (*words, "--vggish", tmp_path / "no")]) == 2
    message = capsys.readouterr().err
    assert f"run `musicgen-jax convert FILE {tmp_path / 'no'}` with vggish-10086976.pth" in message


def test_another_network_is_refused(reference, tmp_path):
    state = reference.state_dict()
    del state["features.8.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"1 missing"):
        convert(tmp_path / "part.pth", tmp_path / "ours")
