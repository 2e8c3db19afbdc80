"""Reads a pickle as data: a small interpreter that cannot import or call anything.

A pickle is a program for a stack machine. Python's own unpickler lets the program name any class
and call it. This interpreter knows only the instructions that build dicts, lists, tuples and
scalars. A name stays a `Name`. Instead of making an object, it makes an `Inert` record of the
arguments and the state. The few names with a meaning (those of tensors and dicts) are mapped to
functions that the reader supplies.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any


class Refused(Exception):
    """The program does more than describe data; the message gives the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the file refers to, such as "typing.Any"."""

    name: str


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Inert:
    """An object as the file describes it.

    Attributes:
      name: name of its class, or of the function that would have made it.
      args: arguments of that class or function.
      state: state from which its attributes would have been set; None if the file has none.
    """

    name: str
    args: tuple
    state: Any = None


_KEYS = (str, int, float, bool, type(None))  # hashing nested tuples can take forever


def read_pickle(
    program: bytes,
    functions: Mapping[str, Callable[..., Any]],
    inert: Collection[str],
    persistent: Callable[[Any], Any],
) -> Any:
    """Runs a pickle's instructions over plain data.

    The result is not larger than the program. But one object can appear in many places, or inside
    itself, so code that walks through the result must limit its steps.

    Args:
      program: the pickle.
      functions: replacements for the functions that have a meaning, by full name. A replacement
        receives the file's arguments, which can be anything.
      inert: other full names that are allowed.
      persistent: returns the object for a persistent id, which can be anything.

    Returns:
      Dicts, lists, tuples, scalars, `Name`, `Inert`, and the results of `functions` and
      `persistent`.

    Raises:
      Refused: the program contains another instruction or another name.
      Exception: any other exception means that the program is damaged.
    """
    # Check the whole program before running any of it.
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("GLOBAL", "INST"):
            _check_name(str(argument).replace(" ", ".", 1), functions, inert)
        if opcode.name not in _ACTIONS:
            raise Refused(f"pickle instruction {opcode.name} is not data")
    machine = _Machine(functions, inert, persistent)
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "STOP":
            return machine.result()
        _ACTIONS[opcode.name](machine, argument)
    raise ValueError("no end")


def _check_name(name: str, functions: Collection[str], inert: Collection[str]) -> None:
    if name not in functions and name not in inert:
        raise Refused(f"it names {name[:100]!r}")


class _Machine:
    """The stack, its marks and the memo, with the operations of the instructions."""

    def __init__(self, functions, inert, persistent):
        self.functions, self.inert, self.persistent = functions, inert, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if self.marked or len(self.stack) != 1:
            raise ValueError("more or less than one object")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def last(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"a {type(self.stack[-1]).__name__} instead of a {kind.__name__}")
        return self.stack[-1]

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError("an empty stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def set_items(self, items: list[Any]) -> None:
        self.last(dict).update(_pairs(items))

    def extend(self, items: list[Any]) -> None:
        self.last(list).extend(items)

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def global_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name that is not a string")
        _check_name(f"{module}.{name}", self.functions, self.inert)
        self.push(Name(f"{module}.{name}"))

    def call(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        args = self.pop()
        self.push(_make(self.pop(), args, functions))

    def build(self) -> None:
        state = self.pop()
        if type(self.stack[-1]) is not dict:  # torch attaches its version to a state dict
            self.last(Inert).state = state


_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
# The action of each instruction, called with the machine and the argument. Others are refused.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_LITERALS, lambda m, value: m.push(value)),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.mark(),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "DICT": lambda m, _: m.push(_pairs(m.to_mark())),
    "LIST": lambda m, _: m.push(m.to_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.to_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.to_mark()),
    "BINPUT": lambda m, place: m.remember(place),
    "LONG_BINPUT": lambda m, place: m.remember(place),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "BINGET": lambda m, place: m.push(m.memo[place]),
    "LONG_BINGET": lambda m, place: m.push(m.memo[place]),
    "GLOBAL": lambda m, name: m.push(Name(str(name).replace(" ", ".", 1))),
    "STACK_GLOBAL": lambda m, _: m.global_from_stack(),
    "REDUCE": lambda m, _: m.call(m.functions),
    "NEWOBJ": lambda m, _: m.call({}),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.pop())),
}


def _make(name: Any, args: Any, functions: Mapping[str, Callable[..., Any]]) -> Any:
    if type(name) is not Name or type(args) is not tuple:
        raise ValueError("a call of something that is not a name")
    function = functions.get(name.name)
    return Inert(name.name, args) if function is None else function(*args)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Makes a dict from a flat list of alternating keys and values."""
    for key in items[::2]:
        if type(key) not in _KEYS:
            raise ValueError(f"a {type(key).__name__} as a key")
    return dict(zip(items[::2], items[1::2], strict=True))
