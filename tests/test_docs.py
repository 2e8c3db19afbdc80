"""What README and docs/ show must work: commands parse, code compiles, names and files exist."""

import ast
import importlib
import inspect
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from musicgen_jax.commands import cli
from tests.helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md",
                ROOT / "musicgen_jax/nano/MODEL_CARD.md"])  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
FILE = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|png|jsonl|toml))`")


def blocks(page: Path, *languages: str) -> list[str]:
    """The code of a page; a command over several lines becomes one."""
    found = [code for language, code in FENCE.findall(page.read_text()) if language in languages]
    return found if "python" in languages else [code.replace("\\\n", " ") for code in found]


def commands(page: Path) -> list[list[str]]:
    """The words of every whole command of a page: in blocks and indented lines."""
    text = page.read_text()
    lines = [line for block in blocks(page, "sh", "") for line in block.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`(python [^`\n]+)`", FENCE.sub("", text))  # scripts need no argument
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:  # one after the other, and through a pipe
            ends = [i for i, word in enumerate(words) if word in ("&&", "|", ";")]
            end = ends[0] if ends else len(words)
            found.append(words[:end])
            words = words[end + 1 :]
    return [words for words in found if words]


def cases(first: str) -> list:
    return [
        pytest.param(words, id=f"{page.name}: {' '.join(words)}")
        for page in PAGES
        for words in commands(page)
        if words[0] == first
    ]


def python_blocks() -> list:
    return [
        pytest.param(code, id=f"{page.name}-{i}")
        for page in PAGES
        for i, code in enumerate(blocks(page, "python"))
    ]


def imported(tree: ast.AST) -> list[tuple[str, str | None]]:
    """(module, name of it or None) of each import of this package."""
    names: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in names if module.startswith("musicgen_jax")]


def exists(module: str, name: str | None) -> bool:
    try:
        found = importlib.import_module(module)
        if name is None or hasattr(found, name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("words", cases("musicgen-jax"))
def test_a_command_parses(words):
    try:
        args = cli._parser().parse_args(words[1:])
    except SystemExit:
        pytest.fail(f"does not parse: {shlex.join(words)}")
    assert callable(args.run)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_the_text_mentions_exists(page):
    mentioned = re.findall(r"`musicgen-jax ([a-z][a-z-]*)", FENCE.sub("", page.read_text()))
    assert set(mentioned) <= cli._commands().keys()


@pytest.mark.parametrize("words", cases("python"))
def test_a_script_has_the_options_that_are_shown(words):
    if words[1] == "-m":
        path = ROOT / (words[2].replace(".", "/") + ".py")
        if words[2] == "musicgen_jax.convert":
            path = ROOT / "convert/command.py"
        elif not words[2].startswith("musicgen_jax"):
            return
    else:
        path = ROOT / words[1]
    assert path.is_file()
    text = path.read_text()
    if "measuring.arguments" in text:
        text += (ROOT / "benchmarks/measuring.py").read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in text, f"{path.name} has no {option}"


@pytest.mark.parametrize("code", python_blocks())
def test_python_compiles_and_its_imports_exist(code):
    tree = ast.parse(textwrap.dedent(code))
    compile(tree, "docs", "exec")
    missing = [names for names in imported(tree) if not exists(*names)]
    assert not missing


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for link in LINK.findall(text):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for file in FILE.findall(text):
        if not file.startswith((".", "runs/")):
            assert (ROOT / file).exists(), file


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "](docs/index.md)" in text
    index = (ROOT / "docs/index.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        if page.name != "index.md":
            assert re.search(rf"^- \[.+\]\({page.name}\): \S", index, re.M), page.name
            assert re.search(rf"^{page.stem}$", index, re.M), page.name


# What the right column of a page about another library calls.
CALL = re.compile(r"`((?:model|audio|MusicGen|Codec)\.\w+\(.*?\))`")


def calls(page: Path) -> list:
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    right = [row.rstrip(" |").rsplit(" | ", 1)[-1] for row in rows]
    return [call for cell in right for call in CALL.findall(cell)]


@pytest.mark.parametrize("name", ["from-audiocraft.md", "from-transformers.md"])
def test_the_calls_of_a_migration_table_fit_our_signatures(name):
    from musicgen_jax import Codec, MusicGen, audio

    homes = {"model": MusicGen, "MusicGen": MusicGen, "Codec": Codec, "audio": audio}
    found = calls(ROOT / "docs" / name)
    assert len(found) > 10
    for text in found:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Attribute)
        home = call.func.value.id  # type: ignore[attr-defined]
        signature = inspect.signature(getattr(homes[home], call.func.attr))
        given = [None] * (len(call.args) + (home == "model"))
        signature.bind(*given, **{str(word.arg): None for word in call.keywords})


def test_ci_runs_the_two_commands_of_the_readme():
    first, second, *_ = blocks(ROOT / "README.md", "sh")
    ci = (ROOT / ".ci/run").read_text()
    generate = shlex.split(first)[shlex.split(first).index("musicgen-jax") + 1 :]
    assert " ".join(generate[:1]) in ci
    assert f'"{generate[1]}"' in ci
    # There without its output, and with the times of the slowest tests.
    install, pytest_command = second.strip().split(" && ")
    assert install.replace("pip install", "pip install --quiet") in ci
    assert pytest_command in ci


def test_each_public_method_is_in_the_table():
    from musicgen_jax import MusicGen

    text = (ROOT / "docs/python.md").read_text()
    for name in re.findall(r"^\| `(\w+)\(", text, re.M):
        assert callable(getattr(MusicGen, name)), name
