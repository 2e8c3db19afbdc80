"""A pickle read as data: a small interpreter in which nothing can be imported or called.

A pickle is a program for a stack machine. Python's own unpickler lets it name any class and call
it. This one knows the instructions that build dicts, lists, tuples and scalars. A name stays a
`Name`; where the program would make an object, an `Inert` record of the arguments and the state
takes the object's place. The few names with a meaning (those of tensors and dicts) come with
functions of the reader's own.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any


class Refused(Exception):
    """The program is more than data; the message says how."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the file refers to: "typing.Any"."""

    name: str


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Inert:
    """An object as the file describes it.

    Attributes:
      name: of its class, or of the function that would have made it.
      args: what that would have been called with.
      state: what would have become its attributes; None if the file gives none.
    """

    name: str
    args: tuple
    state: Any = None


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# fmt: off
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}
_OPCODES = {
    *_CONSTANTS, *_LITERALS,
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL",
    "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
}
# fmt: on
_KEYS = (str, int, float, bool, type(None))  # the hash of nested tuples can take for ever


def read_pickle(
    program: bytes,
    functions: Mapping[str, Callable[..., Any]],
    inert: Collection[str],
    persistent: Callable[[Any], Any],
) -> Any:
    """Runs a pickle's instructions over plain data.

    What it makes is no larger than the program, but one object may stand in many places, or inside
    itself: whoever walks through the result has to count.

    Args:
      program: the pickle.
      functions: by full name, what takes the place of a function that has a meaning. It is given
        the file's arguments, whatever they are.
      inert: full names that may occur besides.
      persistent: gives the object of a persistent id, whatever that is.

    Returns:
      dicts, lists, tuples, scalars, `Name`, `Inert` and what `functions` and `persistent` return.

    Raises:
      Refused: the program holds another instruction or another name.
      Exception: of any other kind: the program is damaged.
    """
    # The whole program is looked through before any of it runs.
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("GLOBAL", "INST"):
            _check_name(str(argument).replace(" ", ".", 1), functions, inert)
        if opcode.name not in _OPCODES:
            raise Refused(f"pickle instruction {opcode.name} is not data")
    return _run(program, functions, inert, persistent)


def _check_name(name: str, functions: Collection[str], inert: Collection[str]) -> None:
    if name not in functions and name not in inert:
        raise Refused(f"it names {name[:100]!r}")


def _run(program: bytes, functions, inert, persistent) -> Any:
    stack: list[Any] = []
    marked: list[list[Any]] = []  # the stacks under each open mark
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, marked.pop()
        return items

    def last(kind: type) -> Any:
        if type(stack[-1]) is not kind:
            raise ValueError(f"a {type(stack[-1]).__name__} in place of a {kind.__name__}")
        return stack[-1]

    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _LITERALS:
                stack.append(argument)
            case "MARK":
                marked.append(stack)
                stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE" | "LIST":
                items = to_mark()
                stack.append(items if opcode.name == "LIST" else tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if count > len(stack):
                    raise IndexError("an empty stack")
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                items = to_mark()
                stack.append(_pairs(items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                last(dict).update(_pairs([key, value]))
            case "SETITEMS":
                items = to_mark()
                last(dict).update(_pairs(items))
            case "APPEND":
                value = stack.pop()
                last(list).append(value)
            case "APPENDS":
                items = to_mark()
                last(list).extend(items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]  # type: ignore[index]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])  # type: ignore[index]
            case "GLOBAL":
                stack.append(Name(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise ValueError("a name that is no string")
                _check_name(f"{module}.{name}", functions, inert)
                stack.append(Name(f"{module}.{name}"))
            case "REDUCE":
                args = stack.pop()
                stack.append(_make(stack.pop(), args, functions))
            case "NEWOBJ":
                args = stack.pop()
                stack.append(_make(stack.pop(), args, {}))
            case "BUILD":
                state = stack.pop()
                if type(stack[-1]) is not dict:  # torch hangs its version on a state dict
                    last(Inert).state = state
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case "STOP":
                if marked or len(stack) != 1:
                    raise ValueError("more or less than one object")
                return stack[0]
    raise ValueError("no end")


def _make(name: Any, args: Any, functions: Mapping[str, Callable[..., Any]]) -> Any:
    if type(name) is not Name or type(args) is not tuple:
        raise ValueError("a call of what is no name")
    function = functions.get(name.name)
    return Inert(name.name, args) if function is None else function(*args)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A flat list of keys and values as a dict."""
    for key in items[::2]:
        if type(key) not in _KEYS:
            raise ValueError(f"a {type(key).__name__} as a key")
    return dict(zip(items[::2], items[1::2], strict=True))
