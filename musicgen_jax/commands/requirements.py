"""Whether installed packages are the versions that they ask of each other. Reads metadata alone."""

import importlib.metadata
import operator
import re
from collections.abc import Iterator
from itertools import zip_longest

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_dtypes", "safetensors",
    "sentencepiece", "soundfile", "soxr", "tqdm", "filelock", "PyYAML",
)  # fmt: skip
# The packages whose requirements are compared with what is installed.
_ASKING = ("musicgen-jax", "jax", "flax", "orbax-checkpoint")
_PLUGIN = re.compile(r"jax-(cuda\d+|rocm\d+)-(plugin|pjrt)")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*\(?([^;()]*)\)?")
_COMPARED = re.compile(r"(==|!=|>=|<=|~=|>|<)\s*([\w.*+!-]+)")
_RELATIONS = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt,
    "<": operator.lt,
}  # fmt: skip


def versions() -> dict[str, str | None]:
    """The version of each package that the command line needs; None for a missing one."""
    return {name: version(name) for name in PACKAGES}


def version(name: str) -> str | None:
    """Of an installed package; None if it is not installed, or says nothing about itself."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def conflicts() -> list[str]:
    """What does not fit together, a line each, such as "jax 0.10.2 needs jaxlib >=0.10.1 ..."."""
    found = [f"{name} is not installed" for name, there in versions().items() if there is None]
    for name in _ASKING:
        for wanted, rule in _requirements(name):
            there = version(wanted)
            if there is not None and not satisfies(there, rule):
                found.append(
                    f"{name} {version(name)} needs {wanted} {rule}, but {there} is installed"
                )
    library = version("jaxlib")
    for distribution in importlib.metadata.distributions():
        plugin = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if _PLUGIN.fullmatch(plugin) and library and distribution.version != library:
            found.append(f"{plugin} {distribution.version} does not match jaxlib {library}")
    return list(dict.fromkeys(found))


def satisfies(there: str, rule: str) -> bool:
    """Whether a version fulfils a rule such as ">=0.10.1,<=0.10.2".

    Parts that are not numbers, such as "rc1" or "+cuda", do not count.
    """
    for relation, wanted in _COMPARED.findall(rule):
        have, want = _numbers(there), _numbers(wanted)
        if relation == "~=":  # at least, and alike up to the last number but one
            if have < want or have[: len(want) - 1] != want[:-1]:
                return False
        elif wanted.endswith(".*"):
            if (have[: len(want)] == want) != (relation == "=="):
                return False
        elif not _RELATIONS[relation](*_alike(have, want)):
            return False
    return True


def _requirements(name: str) -> Iterator[tuple[str, str]]:
    """(package, rule) of everything that an installed package needs in any case."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match and ";" not in line:  # after it: the extra, system or Python that it is for
            yield match[1], match[2].strip()


def _numbers(text: str) -> tuple[int, ...]:
    release = re.match(r"v?\d+(?:\.\d+)*", text)
    return tuple(map(int, release[0].lstrip("v").split("."))) if release else ()


def _alike(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both with as many numbers as the longer one: 1.0 is 1.0.0."""
    pairs = list(zip_longest(a, b, fillvalue=0))
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
