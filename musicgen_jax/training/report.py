"""A run as one HTML page: curves as inline SVG, settings, last pictures. No scripts, no links."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

# One figure each: its title, and the record fields that it shows.
GROUPS = (
    ("Loss", ("loss", "valid", "ema valid")),
    ("Cross-entropy of each codebook, in nats", ("ce_q*",)),
    ("Perplexity", ("ppl", "valid ppl")),
    ("Gradient norm before clipping", ("grad_norm",)),
    ("Learning rate", ("lr",)),
    ("Tokens per second", ("tokens_per_second",)),
)
_COLOURS = ("#1f6fb4", "#d1622b", "#2f8f4e", "#8a4fb0", "#b03a48", "#6b6b6b", "#a08a1c", "#168a8a")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 260, 70, 30, 12
_MOST_POINTS = 600  # more would be indistinguishable
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin: 1.6em 0 .3em }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #555 }
table { border-collapse: collapse } td { padding: .1em 1.5em .1em 0 }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto } img { max-width: 100% }
"""


def page(name: str, config: str, records: Sequence[dict], pictures: Sequence[Path] = ()) -> str:
    """Makes the page of a run.

    Args:
      name: title of the page.
      config: settings as text.
      records: dicts of numbers, each with "step".
      pictures: .png files; the last four are embedded.
    """
    parts = [f"<h1>{html.escape(name)}</h1>", _last(records)]
    shown = {"step", "seconds"}
    for title, wanted in GROUPS:
        fields = _fields(records, wanted)
        shown |= set(fields)
        parts += _figure(title, fields, records)
    for field in _fields(records, ("*",)):  # fields of other trainers
        if field not in shown and not field.startswith("ppl_q"):
            parts += _figure(field, [field], records)
    for picture in pictures[-4:]:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<h2>{html.escape(picture.stem)}</h2>")
        parts.append(f'<img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{data}">')
    parts.append(f"<h2>Settings</h2><pre>{html.escape(config)}</pre>")
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    title = f"<title>{html.escape(name)}</title><style>{_STYLE}</style></head>"
    return f"{head}{title}<body>{''.join(parts)}</body></html>\n"


def _fields(records: Sequence[dict], wanted: Sequence[str]) -> list[str]:
    """Field names in the order of first occurrence; `x*` matches all names that begin with x."""
    names = dict.fromkeys(
        name for record in records for name, v in record.items() if isinstance(v, int | float)
    )
    prefixes = tuple(name[:-1] for name in wanted if name.endswith("*"))
    return [name for name in names if name in wanted or (prefixes and name.startswith(prefixes))]


def _last(records: Sequence[dict]) -> str:
    last: dict = {}
    for record in records:
        last |= record
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_number(value))}</td></tr>"
        for name, value in last.items()
        if isinstance(value, int | float)
    )
    return f"<table>{rows}</table>" if rows else "<p>Nothing was recorded.</p>"


def _figure(title: str, fields: Sequence[str], records: Sequence[dict]) -> list[str]:
    series = {}
    for name in fields:
        points = [(r["step"], float(r[name])) for r in records if name in r]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if points:
            series[name] = _thinned(points)
    return [f"<h2>{html.escape(title)}</h2>", _svg(title, series)] if series else []


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Reduces points to at most `_MOST_POINTS` by averaging neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def _svg(title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    ticks_x, ticks_y = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    low_x, high_x = min(xs[0], *xs), max(*xs, min(xs) + 1)
    low_y, high_y = min(ticks_y[0], min(ys)), max(ticks_y[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - 10)
        up = (y - low_y) / (high_y - low_y) * (_HEIGHT - _BOTTOM - _TOP)
        return round(right, 1), round(_HEIGHT - _BOTTOM - up, 1)

    parts = []
    for value in ticks_y:
        _, y = place(low_x, value)
        line = f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        label = f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(value)}</text>'
        parts += [line, label]
    for value in ticks_x:
        if low_x <= value <= high_x:
            x, _ = place(value, low_y)
            at = f'x="{x}" y="{_HEIGHT - _BOTTOM + 18}"'
            parts.append(f'<text {at} text-anchor="middle">{_number(value)}</text>')
    for i, (name, points) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        if len(points) == 1:
            x, y = place(*points[0])
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        if len(series) > 1:
            x, y = _WIDTH - 110, _TOP + 12 + 15 * i
            parts.append(f'<rect x="{x - 14}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{x}" y="{y}">{html.escape(name)}</text>')
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that cover the range."""
    if high <= low:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
