"""The picture of the results: means and intervals, as SVG written by hand. Needs no library."""

from typing import Any
from xml.sax.saxutils import escape

from musicgen_jax.listening.study import SCALES

_LEFT, _RIGHT, _ROW, _HEAD, _FOOT = 150, 70, 30, 44, 34
_WIDTH = 720
_STYLE = """
svg { color-scheme: light dark; font: 14px system-ui, sans-serif; background: #fff; }
text { fill: #1d1c1a; } .soft { fill: #65625b; font-size: 12px; } .head { font-weight: 600; }
.grid { stroke: #e6e2da; } .mark { fill: #2f5d8c; stroke: #2f5d8c; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  svg { background: #161719; } text { fill: #ecebe8; } .soft { fill: #a5a29b; }
  .grid { stroke: #36383c; } .mark { fill: #8ab8e6; stroke: #8ab8e6; }
}
"""


def svg(results: dict[str, Any]) -> str:
    """One panel for each question, a row for each system: the mean and its 95 % interval.

    Args:
      results: of `analysis.analyse`.
    """
    parts, top = [], 0
    for name, scale in results["scales"].items():
        if scale["systems"]:
            parts += _panel(SCALES[name].label, scale, results["systems"], top)
            top += _HEAD + _ROW * len(results["systems"]) + _FOOT
    title = escape(results["title"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" '
        f'height="{top}" role="img" aria-label="{title.replace(chr(34), "&quot;")}">'
        f"<title>{title}</title><style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _panel(label: str, scale: dict[str, Any], systems: list[str], top: int) -> list[str]:
    bottom = top + _HEAD + _ROW * len(systems)
    parts = [_text(_LEFT, top + 26, f"{scale['short']}: {label}", "head")]
    for tick in range(0, 101, 20):
        x = _x(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {top + _HEAD - 6}V{bottom}"/>')
        parts.append(_text(x, bottom + 16, str(tick), "soft", "middle"))
    for row, system in enumerate(systems):
        y = top + _HEAD + _ROW * row + _ROW / 2
        parts.append(_text(_LEFT - 12, y + 5, system, "", "end"))
        found = scale["systems"].get(system)
        if found is None:
            continue
        if found["low"] is not None:
            low, high = _x(max(0.0, found["low"])), _x(min(100.0, found["high"]))
            parts.append(
                f'<path class="mark" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 5}v10'
                f'M{high:.1f} {y - 5}v10"/>'
            )
        parts.append(f'<circle class="mark" cx="{_x(found["mean"]):.1f}" cy="{y}" r="4.5"/>')
        parts.append(_text(_WIDTH - _RIGHT + 14, y + 5, f"{found['mean']:.1f}"))
    return parts


def _x(score: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * score / 100


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    shown = text if len(text) <= 20 or kind == "head" else f"{text[:19]}…"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{escape(shown)}</text>"
    )
