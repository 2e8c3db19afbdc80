"""The pages that the site makes of other things: the parser, the OpenAPI document, other files.

`conf.py` calls `write` before the build; nothing here is typed twice.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musicgen_jax.commands import cli
from musicgen_jax.serving.http import openapi
from musicgen_jax.serving.http.settings import Settings

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FOLDER = DOCS / "generated"

# Pages of the site that are files elsewhere in the repository.
ELSEWHERE = {
    "benchmarks/README.md": "generated/benchmarks.md",
    "musicgen_jax/nano/MODEL_CARD.md": "generated/nano-card.md",
    "CHANGELOG.md": "generated/changes.md",
    "CONTRIBUTING.md": "generated/contributing.md",
}


def write() -> None:
    """Writes every page in `generated/`."""
    FOLDER.mkdir(exist_ok=True)
    pages = {"command-line.md": command_line(), "http.md": http()}
    pages |= {Path(page).name: elsewhere(file) for file, page in ELSEWHERE.items()}
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def elsewhere(file: str) -> str:
    """A file of the repository with links that hold in `generated/`."""
    text = (ROOT / file).read_text("utf-8")
    text = re.sub(r"\]\((?:\.\./)?docs/", "](../", text)
    return inside(text, "")


def inside(text: str, up: str = "../") -> str:
    """Links to files elsewhere, seen from a folder with `up` to the root, become links to pages."""
    for file, page in ELSEWHERE.items():
        here = page if up else Path(page).name
        text = text.replace(f"]({up}{file}", f"]({here}")
    return text


def index() -> dict[str, tuple[str, str]]:
    """By page, in the order of index.md: its title there and what it answers."""
    rows = re.findall(
        r"^- \[([^]]+)\]\(([\w-]+\.md)\): (.*)$", (DOCS / "index.md").read_text(), re.M
    )
    return {page: (title, text) for title, page, text in rows}


def llms(url: str = "") -> str:
    """llms.txt: what this is, and every page with what it answers."""
    lines = ["# musicgen_jax", "", "> MusicGen, text to music, in pure JAX.", "", "## Pages", ""]
    lines += [f"- [{title}]({url}{page}): {text}" for page, (title, text) in index().items()]
    return "\n".join(lines) + "\n"


# --- The command line ---------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its options, as the parser has them."""
    parts = [
        "# Command reference",
        "Made from the parser: `musicgen-jax COMMAND --help` prints the same. "
        "[Command line](../command-line.md) has examples.",
    ]
    for parser in _leaves(cli._parser()):
        parts += [f"## {parser.prog}", _escaped(parser.description or "")]
        parts += ["```text\n" + parser.format_usage().removeprefix("usage: ").strip() + "\n```"]
        rows = [_row(parser, action) for action in parser._actions if _shown(action)]
        if rows:
            parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _leaves(child)
            return
    yield parser


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    names = action.option_strings or [action.metavar or action.dest]
    first = ", ".join(f"`{name}`" for name in map(str, names))
    if action.option_strings and action.nargs != 0:
        first += f" `{value}`"
    text = formatter._expand_help(action) if action.help else ""
    return f"| {first.replace('|', chr(92) + '|')} | {_escaped(text)} |"


def _escaped(text: str) -> str:
    return re.sub(r"([|<>*_\[\]])", r"\\\1", " ".join(text.split()))


# --- HTTP ---------------------------------------------------------------------------------------


def http() -> str:
    """Routes, bodies, answers and errors, as the OpenAPI document has them."""
    document = openapi.document(Settings("nano"))
    parts = [
        "# HTTP reference",
        "Made from the OpenAPI document that every server sends at `/openapi.json`. "
        "[Serving](../serving.md) has examples.",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "delete"):
                parts += [f"## {method.upper()} {path}", operation["summary"] + "."]
                parts += _body(operation) + _answers(operation)
    return "\n\n".join(parts) + "\n"


def _body(operation: dict[str, Any]) -> list[str]:
    if "requestBody" not in operation:
        return []
    content = operation["requestBody"]["content"]
    fields: dict[str, Any] = {}
    for kind in content.values():  # JSON comes first: a form adds its files
        fields = kind["schema"]["properties"] | fields
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for name, schema in fields.items():
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kind = "file" if "contentMediaType" in schema else " or ".join(map(str, kinds))
        default = f"`{schema['default']}`" if "default" in schema else ""
        bounds = [f"{schema[key]}" for key in ("minimum", "maximum") if key in schema]
        text = _escaped(schema.get("description", ""))
        if len(bounds) == 2:
            text += f" ({bounds[0]} to {bounds[1]})"
        if "enum" in schema:
            text += ": " + ", ".join(f"`{each}`" for each in schema["enum"] if each is not None)
        rows.append(f"| `{name}` | {kind} | {default} | {text} |")
    return ["Body: " + " or ".join(f"`{kind}`" for kind in content) + ".", "\n".join(rows)]


def _answers(operation: dict[str, Any]) -> list[str]:
    rows = ["| status | answer |", "|---|---|"]
    headers: dict[str, Any] = {}
    for code, answer in operation["responses"].items():
        if int(code) < 400:
            kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
            rows.append(f"| {code} | {answer['description']}: {kinds} |")
            headers |= answer.get("headers", {})
    errors = [code for code in operation["responses"] if int(code) >= 400]
    rows.append(f"| {', '.join(errors)} | an error, see [Errors](../serving.md#errors) |")
    parts = ["\n".join(rows)]
    if headers:
        lines = [f"| `{name}` | {each['description']} |" for name, each in headers.items()]
        parts.append("\n".join(["| header of the answer | |", "|---|---|", *lines]))
    return parts
