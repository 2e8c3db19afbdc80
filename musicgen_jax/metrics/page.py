"""A report as one HTML page that works from the file system: scores, players, spectrograms.

    report.html      everything but the sound; it asks no other host for anything
    audio/           the clips that it plays, by their content

The page has a row for every clip. Players and pictures are there for all clips of a small set, and
for the worst and best ones of a large set.
"""

import base64
import hashlib
import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musicgen_jax import audio, files
from musicgen_jax.errors import UserError, printable, user_error
from musicgen_jax.metrics.report import BETTER, NAMES, infinity_words
from musicgen_jax.metrics.spectrogram import HEIGHT, WIDTH, png

_ALL = 100  # up to so many clips, each has players
_ENDS = 25  # otherwise so many of the worst and of the best by each metric
_PLAYABLE = (".wav", ".flac", ".mp3", ".ogg", ".opus")  # by browsers
_ORDER = ("clap", "kld", "chroma", "fad")  # the first that is there sorts the page at first

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; padding: 0 1em; max-width: 1200px;
  color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 1.8em }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35em .7em; border-top: 1px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0;
  cursor: pointer; color: #1f5fa0 }
th[aria-sort=descending] button::after { content: " \\2193" }
th[aria-sort=ascending] button::after { content: " \\2191" }
audio { width: 260px; height: 34px; display: block }
img { display: block; image-rendering: auto; width: 260px; height: 64px; background: #000 }
.caption { color: #555; max-width: 34em } .id { overflow-wrap: anywhere }
.pair { display: flex; gap: 1em; flex-wrap: wrap } .pair small { color: #666 }
.controls button { margin-right: .6em } li { margin: .2em 0 }
.small { color: #666; font-size: .9em }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #16181b } th, td { border-color: #333 }
  th button { color: #8ab8e8 } .caption, .pair small, .small { color: #aaa } }
"""

# Sorts the rows; a clip without the score comes last. Without scripts the page is complete.
_SCRIPT = """
"use strict";
const body = document.querySelector("#clips tbody");
const heads = [...document.querySelectorAll("#clips th[data-key]")];
const first = heads.find(h => h.ariaSort);
let current = first && { key: first.dataset.key, ascending: first.ariaSort === "ascending" };
function sort(key, ascending) {
  const value = row => row.dataset[key];
  const numeric = key !== "id";
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const order = numeric ? x - y : x.localeCompare(y);
    return ascending ? order : -order;
  });
  body.append(...rows);
  for (const head of heads) head.removeAttribute("aria-sort");
  const head = heads.find(h => h.dataset.key === key);
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  current = { key, ascending };
}
for (const head of heads) head.querySelector("button").onclick = () =>
  sort(head.dataset.key, current && current.key === head.dataset.key ? !current.ascending : true);
function ends(worst) {
  const head = heads.find(h => current && h.dataset.key === current.key && h.dataset.better) ||
    heads.find(h => h.dataset.better);
  if (head) sort(head.dataset.key, (head.dataset.better === "higher") === worst);
}
document.querySelector("#worst").onclick = () => ends(true);
document.querySelector("#best").onclick = () => ends(false);
document.addEventListener("play", event => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);
"""


def write(
    out: Path,
    report: Mapping[str, Any],
    clips: Mapping[str, Path],
    reference: Mapping[str, Path],
    captions: Mapping[str, str],
) -> Path:
    """Writes the page, and next to it the clips that it plays.

    Args:
      out: its folder.
      report: of `evaluation.evaluate`.
      clips: {id: file} of the clips that were judged.
      reference: {id: file}.
      captions: {id: text}.

    Raises:
      UserError: a file cannot be written.
    """
    rows = sorted_rows(report["clips"])
    names = {printable(name): name for name in clips}
    shown, metrics = chosen(rows), per_clip(rows)
    parts = []
    for row in rows:
        name = names[row["id"]]
        players = ""
        if row["id"] in shown:
            sides = (("generated", clips.get(name)), ("reference", reference.get(name)))
            players = "".join(_player(out, side, file) for side, file in sides if file)
        parts.append(_row(row, metrics, captions.get(name, ""), players))
    text = _page(report, "".join(parts), len(shown))
    path = out / "report.html"
    files.write_bytes(path, text.encode())
    return path


def per_clip(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that score single clips; the first one sorts the page."""
    return [name for name in _ORDER if any(name in row for row in rows)]


def sorted_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The worst clips first; those without a score last."""
    metrics = per_clip(rows)
    if not metrics:
        return list(rows)
    name = metrics[0]
    sign = 1 if BETTER[name] == "higher" else -1
    return sorted(rows, key=lambda row: (name not in row, sign * row.get(name, 0.0)))


def chosen(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The ids of the clips that get players."""
    if len(rows) <= _ALL:
        return {row["id"] for row in rows}
    found: set[str] = set()
    for metric in per_clip(rows):
        ranked = sorted((row for row in rows if metric in row), key=lambda row: row[metric])
        found |= {row["id"] for row in (*ranked[:_ENDS], *ranked[-_ENDS:])}
    return found or {row["id"] for row in rows[:_ALL]}


def _player(out: Path, side: str, file: Path) -> str:
    """A player and a picture of a clip next to the page; "" if it cannot be read."""
    try:
        wav, rate = audio.read(file)
        source = _beside(out, file)
    except UserError:  # it changed since it was measured
        return ""
    picture = base64.b64encode(png(wav, rate)).decode()
    return (
        f'<div><small>{side}</small><img alt="spectrogram, {side}" width="{WIDTH}" '
        f'height="{HEIGHT}" loading="lazy" src="data:image/png;base64,{picture}">'
        f'<audio controls preload="none" src="{html.escape(source)}"></audio></div>'
    )


def _beside(out: Path, file: Path) -> str:
    """The clip's address, relative to the page; the clip is copied unless it is there already."""
    with user_error("read", file):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    inside = file.resolve()
    if inside.is_relative_to(out.resolve()) and inside.parent == (out / "clips").resolve():
        return f"clips/{inside.name}"  # made by `evaluate --model`, so the name is plain
    suffix = file.suffix.lower()
    target = out / "audio" / f"{digest}{suffix if suffix in _PLAYABLE else '.flac'}"
    if not target.exists():
        if suffix in _PLAYABLE:
            with user_error("read", file), file.open("rb") as source, files.new_file(target) as new:
                shutil.copyfileobj(source, new)
        else:
            audio.write(target, *audio.read(file), "clip", peak_clip_headroom_db=0)
    return f"audio/{target.name}"


def _row(row: Mapping[str, Any], metrics: Sequence[str], caption: str, players: str) -> str:
    data = "".join(f' data-{name}="{float(row[name])!r}"' for name in metrics if name in row)
    name = html.escape(row["id"])
    text = f'<div class="caption">{html.escape(printable(caption))}</div>' if caption else ""
    pair = f'<div class="pair">{players}</div>' if players else ""
    return (
        f'<tr data-id="{name}"{data}><td class="id">{name}{text}{pair}</td>'
        + "".join(f'<td class="number">{_number(row.get(column))}</td>' for column in metrics)
        + "</tr>\n"
    )


def _page(report: Mapping[str, Any], rows: str, shown: int) -> str:
    metrics = per_clip(report["clips"])
    figures = "".join(
        f"<tr><td>{NAMES[name]}</td><td class='number'>{_number(result['value'])}</td>"
        f"<td>{BETTER[name]} is better</td><td class='number'>{result['clips']}</td>"
        f"<td class='number'>{result['rows']}</td><td>{html.escape(result['protocol'])}</td>"
        f"<td>{html.escape(result['embedding'])}</td></tr>" + _infinity(result.get("infinity"))
        for name, result in report["metrics"].items()
    )
    notes = [f"{name}: not computed: {why}" for name, why in report["not_computed"].items()]
    notes += report["warnings"]
    for side in ("audio", "reference"):
        notes += [f"skipped {s['id']} ({side}): {s['reason']}" for s in report[side]["skipped"]]
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    definitions = "".join(
        f"<li><b>{name}</b>: {html.escape(result['definition'])}</li>"
        for name, result in report["metrics"].items()
    )
    heads = "".join(
        f'<th class="number" data-key="{name}" data-better="{BETTER[name]}"'
        f'{_sorted(name, metrics)}><button title="{NAMES[name]}: {BETTER[name]} is better">'
        f"{name}</button></th>"
        for name in metrics
    )
    model = f"<p>Model: {html.escape(report['model']['name'])}</p>" if "model" in report else ""
    total = len(report["clips"])
    heard = "" if shown >= total else f" The worst and best {shown} of them can be heard here."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title><style>{_STYLE}</style></head>
<body><h1>Evaluation</h1>{model}
<p>Clips: {html.escape(report["audio"]["path"])}.
Reference: {html.escape(report["reference"]["path"])}.</p>
<table><tr><th>metric</th><th class="number">value</th><th></th><th class="number">clips</th>
<th class="number">rows</th><th>protocol</th><th>embedding</th></tr>
{figures}</table>
<h2>Clips</h2>
<p class="controls"><button id="worst">worst first</button><button id="best">best first</button>
by the column that is sorted. {total} clips.{heard}</p>
<table id="clips"><thead><tr><th data-key="id"><button>clip</button></th>{heads}</tr></thead>
<tbody>
{rows}</tbody></table>
{"<h2>Notes</h2><ul>" + listed + "</ul>" if notes else ""}
<h2>Definitions</h2><ul class="small">{definitions}</ul>
<script>{_SCRIPT}</script></body></html>
"""


def _infinity(found: Mapping[str, Any] | None) -> str:
    if not found or found["value"] is None:
        return ""
    words = html.escape(infinity_words(dict(found)))
    return f'<tr><td>... of infinitely many clips</td><td colspan="6">{words}</td></tr>'


def _sorted(name: str, metrics: Sequence[str]) -> str:
    if not metrics or name != metrics[0]:
        return ""
    return f' aria-sort="{"ascending" if BETTER[name] == "higher" else "descending"}"'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
