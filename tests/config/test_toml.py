"""Settings from TOML: what fits becomes dataclasses, what does not is named in one line."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax.config import toml
from musicgen_jax.errors import UserError
from musicgen_jax.training.lm_settings import PRESETS, LMRunConfig, with_steps


@dataclasses.dataclass(frozen=True)
class Inner:
    weight: float
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int = 1
    name: str = ""
    fast: bool = False
    least: float | None = None
    inner: Inner = dataclasses.field(default_factory=lambda: Inner(0.5))
    rows: tuple[Inner, ...] = ()

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(Inner, FLOATS, st.lists(st.text(), max_size=3).map(tuple))
OUTERS = st.builds(
    Outer, st.integers(0, 1 << 40), st.text(), st.booleans(), st.none() | FLOATS, INNERS,
    st.lists(INNERS, max_size=3).map(tuple),
)  # fmt: skip


@given(OUTERS)
def test_what_is_written_is_read_back(config):
    assert toml.parse(toml.dump(config), Outer) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(toml.dump(PRESETS[name]), encoding="utf-8")
    assert toml.read(path, LMRunConfig) == PRESETS[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes = 1", "unknown field stpes: did you mean steps?"),
        ("[inner]\nweight = 1\nwrods = []", "unknown field inner.wrods: did you mean words?"),
        ("zzz = 1", "known are steps, name"),
        ("steps = 1.5", "steps must be a whole number, got 1.5"),
        ("steps = true", "steps must be a whole number, got True"),
        ("fast = 1", "fast must be true or false, got 1"),
        ("name = 3", "name must be a text, got 3"),
        ("inner = 3", "inner must be an object with fields, got 3"),
        ("[inner]\nweight = nan", "inner.weight must be a finite number, got nan"),
        ("[inner]\nweight = inf", "inner.weight must be a finite number, got inf"),
        ("[inner]\nwords = []", "field inner.weight is missing"),
        ("[inner]\nweight = 1\nwords = ['a', 2]", "inner.words[1] must be a text"),
        ("[[rows]]\nweight = 'x'", "rows[0].weight must be a number"),
        ("steps = -1", "steps must not be negative"),
        ("steps = ", "is not TOML"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(text, message):
    with pytest.raises(UserError) as caught:
        toml.parse(text, Outer, "my.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("my.toml")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="cannot read settings"):
        toml.read(tmp_path / "none.toml", Outer)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        toml.read(tmp_path / "binary.toml", Outer)
    (tmp_path / "huge.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(UserError, match="too large"):
        toml.read(tmp_path / "huge.toml", Outer)


def test_steps_cut_phases_or_lengthen_the_last():
    nano = PRESETS["nano"]
    assert [p.steps for p in with_steps(nano, 1600).training.phases] == [1500, 100]
    assert [p.steps for p in with_steps(nano, 7000).training.phases] == [1500, 4500, 1000]
    with pytest.raises(UserError, match="at least 1"):
        with_steps(nano, 0)
