"""The reader of configs, settings and indices: every fault is one line that names the field."""

import dataclasses
import json
import re
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax.config.schema import (
    Between,
    Natural,
    check_ranges,
    from_dict,
    parse_json,
    to_dict,
)


@dataclasses.dataclass(frozen=True)
class Part:
    weight: Annotated[float, Between(0)]
    pair: tuple[int, Natural] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Whole:
    name: Annotated[str, Between(0, 5)] = ""
    size: Annotated[int, Between(2, 9)] = 2
    free: int = 0
    on: bool = False
    part: Part | None = None
    parts: Annotated[tuple[Part, ...], Between(0, 2)] = ()
    least: Annotated[float, Between(-1, 1)] | None = None

    def __post_init__(self):
        check_ranges(self)


PARTS = st.builds(Part, st.floats(0, 1e9), st.tuples(st.integers(-9, 9), st.integers(0, 9)))
WHOLES = st.builds(
    Whole, st.text(max_size=5), st.integers(2, 9), st.integers(-(1 << 62), 1 << 62), st.booleans(),
    st.none() | PARTS, st.lists(PARTS, max_size=2).map(tuple), st.none() | st.floats(-1, 1),
)  # fmt: skip


@given(WHOLES)
def test_json_round_trip(whole):
    assert from_dict(Whole, parse_json(json.dumps(to_dict(whole)))) == whole


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([field.name for field in dataclasses.fields(Whole)])


@given(st.dictionaries(NAMES | st.text(), VALUES, max_size=3) | VALUES)
def test_any_values_make_a_dataclass_or_one_line(values):
    try:
        made, fault = from_dict(Whole, values), ""
    except ValueError as error:
        made, fault = Whole(), str(error)
    assert "\n" not in fault
    assert len(fault) < 300
    assert from_dict(Whole, to_dict(made)) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 1}, "top.size must be from 2 to 9, got 1"),
        ({"size": 10}, "top.size must be from 2 to 9, got 10"),
        ({"size": 1 << 40_000}, "top.size is too large, got a number of 40001 bits"),
        ({"free": -(1 << 64)}, "top.free is too large, got a number of 65 bits"),
        ({"least": 1 << 4000}, "top.least is too large, got a number of 4001 bits"),
        ({"least": 1.5}, "top.least must be from -1 to 1, got 1.5"),
        ({"least": float("nan")}, "top.least must be a finite number, got nan"),
        ({"on": 1}, "top.on must be true or false, got 1"),
        ({"free": True}, "top.free must be a whole number, got True"),
        ({"free": [1] * 999}, "top.free must be a whole number, got a list of 999"),
        ({"free": {"a": 1}}, "top.free must be a whole number, got an object"),
        ({"name": "abcdef"}, "top.name must have from 0 to 5 characters, got 6"),
        ({"name": "\ud800"}, "top.name is not valid Unicode"),
        ({"part": {"weight": -1}}, "top.part.weight must be at least 0, got -1.0"),
        ({"part": {}}, "field top.part.weight is missing"),
        ({"part": {"weight": 0, "pair": [1]}}, "top.part.pair must be a list of 2, got 1"),
        ({"parts": [{"weight": 0}] * 3}, "top.parts must have from 0 to 2 items, got 3"),
        ({"parts": [{"weight": 0, "pair": [0, -1]}]}, "top.parts[0].pair[1] must be at least 0"),
        ({"nmae": "x"}, "unknown field top.nmae: did you mean name?"),
        ({"x\ny": 1}, r"unknown field top.x\ny: known are name, size"),
        (7, "top must be an object with fields, got 7"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(values, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        from_dict(Whole, values, "top")


def test_python_is_held_to_the_same_ranges():
    with pytest.raises(ValueError, match="size must be from 2 to 9, got 0"):
        Whole(size=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not"),
        (b"{", "not JSON"),
        (b"9" * 10_000, "not JSON"),
    ],
)
def test_hostile_json_is_one_line(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(data)
    assert "\n" not in str(caught.value)
