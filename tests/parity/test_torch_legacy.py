"""torch's file format from before version 1.6, written by torch itself."""

import collections
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from musicgen_jax.convert.torch_zip import read_torch  # noqa: E402
from musicgen_jax.errors import UserError  # noqa: E402


def save(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def state():
    """Views into one storage, an empty tensor, other dtypes, a transposed one."""
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    return collections.OrderedDict(
        a=base,
        part=base[2:4, 1:],
        turned=base.T,
        empty=torch.zeros(0, 3),
        scalar=torch.tensor(3.0),
        half=torch.randn(3).half(),
        narrow=torch.randn(4).bfloat16(),
        whole=torch.arange(4),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )


def test_every_tensor_is_read(tmp_path):
    value = {"state_dict": state(), "epoch": 3}
    found = read_torch(save(tmp_path / "old.pth", value))
    assert found["epoch"] == 3
    assert found["state_dict"].keys() == value["state_dict"].keys()
    for name, tensor in value["state_dict"].items():
        ours = found["state_dict"][name].read()
        assert ours.dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(ours.astype(np.float64), tensor.detach().double().numpy())


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    data = save(tmp_path / "old.pth", state()).read_bytes()
    short = tmp_path / "short.pth"
    for length in (*range(10, len(data), 37), len(data) - 1):
        short.write_bytes(data[:length])
        with pytest.raises(UserError):
            read_torch(short)


def test_changed_bytes_are_refused_or_harmless(tmp_path):
    data = save(tmp_path / "old.pth", state()).read_bytes()
    bad = tmp_path / "bad.pth"
    for at in range(0, len(data), 7):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            found = read_torch(bad)
        except UserError:
            continue
        for tensor in found.values() if isinstance(found, dict) else ():
            if hasattr(tensor, "read"):
                tensor.read()


def test_nothing_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = save(tmp_path / "bomb.pth", {"a": Bomb()})
    with pytest.raises(UserError, match=r"it names '(posix|nt)\.mkdir'"):
        read_torch(path)
    assert not (tmp_path / "ran").exists()
