"""Who may import what. A file imports only from its own room and from rooms listed before it.

Rooms are folders, or single files at the top of the package. Imports for type checking and inside
functions count.
"""

import pytest

from tests.helpers.imports import imported
from tests.helpers.paths import ROOT

ROOMS = (
    ("errors", "config", "files", "console"),
    ("audio",),
    ("runtime",),
    ("nn",),
    ("storage",),
    ("conditioning",),
    ("generation",),
    ("serving",),
    ("model", "codec"),
    ("convert", "export", "training", "nano", "metrics", "listening", "testing"),
    ("commands", "cli", "__main__"),
)
RANK = {name: rank for rank, room in enumerate(ROOMS) for name in room}
FILES = {
    "musicgen_jax": sorted((ROOT / "musicgen_jax").rglob("*.py")),
    "musicgen_jax.convert": sorted((ROOT / "convert").rglob("*.py")),
}


def modules() -> dict[str, set[str]]:
    """Every module below the package's root, and what it imports."""
    found = {}
    for package, files in FILES.items():
        root = ROOT / ("convert" if package.endswith("convert") else "musicgen_jax")
        for file in files:
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            if name != "musicgen_jax":  # the public names, which lie in many rooms
                found[name] = imported(file)
    return found


def room(module: str) -> str | None:
    """The room of a module, None for what is not ours or is the package itself."""
    parts = module.split(".")
    if parts[0] != "musicgen_jax" or len(parts) == 1:
        return None
    return parts[1] if parts[1] in RANK else None


def upward(tree: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports that lead to a later room."""
    return {
        (module, target)
        for module, targets in tree.items()
        for target in targets
        if (there := room(target)) and RANK[there] > RANK[str(room(module))]
    }


def test_every_file_has_a_room():
    assert [module for module in modules() if room(module) is None] == []


def test_nobody_imports_from_a_later_room():
    assert upward(modules()) == set()


def test_only_the_command_line_imports_commands():
    users = {m for m, targets in modules().items() for t in targets if room(t) == "commands"}
    assert {room(module) for module in users} <= {"commands", "cli", "__main__"}


@pytest.mark.parametrize(
    "code",
    [
        "from musicgen_jax.model import MusicGen",
        "from musicgen_jax import model",
        "import musicgen_jax.model",
        "def f():\n    from musicgen_jax.model import MusicGen",
        "if TYPE_CHECKING:\n    from musicgen_jax.model import MusicGen",
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(code, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(code)
    tree = {"musicgen_jax.nn.linear": imported(file)}
    assert {target for _, target in upward(tree)} >= {"musicgen_jax.model"}
