"""A report as a few lines for a terminal, and as a page in Markdown."""

from typing import Any

from musicgen_jax.metrics import published
from musicgen_jax.metrics.evaluation import count

NAMES = {
    "fad": "Frechet Audio Distance",
    "kad": "Kernel Audio Distance",
    "kld": "KL divergence of PaSST's labels",
    "clap": "CLAP score",
    "chroma": "chroma cosine",
}
BETTER = {"fad": "lower", "kad": "lower", "kld": "lower", "clap": "higher", "chroma": "higher"}


def summary(report: dict[str, Any]) -> str:
    """One line for each figure, each metric without one, each warning, and the skipped clips."""
    lines = []
    for name, result in report["metrics"].items():
        lines.append(f"{name}: {_line(result)}")
        if (infinity := result.get("infinity")) and infinity["value"] is not None:
            lines.append(f"{name}, of infinitely many clips: {infinity_words(infinity)}")
    lines += [f"{name}: not computed: {why}" for name, why in report["not_computed"].items()]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    for side in ("audio", "reference"):
        if skipped := report[side]["skipped"]:
            first = f"{skipped[0]['id']}: {skipped[0]['reason']}"
            lines.append(
                f"skipped {len(skipped)} of {report[side]['clips']} clips ({side}): {first}"
            )
    return "\n".join(lines)


def _line(result: dict[str, Any]) -> str:
    if "reference_rows" in result:
        known = result["reference_rows"]
        rows = count(result["rows"], "row") + (f" against {known}" if known else "")
        return f"{result['value']:.6g} ({result['embedding']}, {result['protocol']}, {rows})"
    pairs = count(result["pairs"], "pair")
    return f"{result['value']:.6g} ({pairs}, {result['protocol']})"


def infinity_words(infinity: dict[str, Any]) -> str:
    """A FAD of infinitely many clips with its interval and the fit of its line."""
    low, high = infinity["interval"]
    return f"{infinity['value']:.4g} ({low:.4g} to {high:.4g}), R^2 {infinity['r_squared']:.3f}"


def markdown(report: dict[str, Any]) -> str:
    """The figures as a table, then how they were computed, then the clips left out."""
    model = report.get("model", {})
    known = published.figures(str(model.get("name", "")))
    audio, reference = report["audio"], report["reference"]
    lines = ["# Evaluation", ""]
    if model:
        lines += [f"Model: {code(model['name'])}, captions {code(model['captions'])}.", ""]
    lines += [
        f"Clips: {code(audio['path'])}, {audio['measured']} of {audio['clips']} measured. "
        f"Reference: {code(reference['path'])}.",
        "",
        "| metric | value | better | clips | rows | protocol | embedding |"
        + (f" {published.SOURCE} |" if known else ""),
        "|---|---|---|---|---|---|---|" + ("---|" if known else ""),
    ]
    for name, result in report["metrics"].items():
        beside = f" {known[name]:.2f} |" if name in known else " |" if known else ""
        cells = (NAMES[name], f"{result['value']:.6g}", BETTER[name], result["clips"],
                 result["rows"], result["protocol"], result["embedding"])  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |{beside}")
        infinity = result.get("infinity")
        if infinity and infinity["value"] is not None:
            extra = " |" if known else ""
            lines.append(
                f"| ... of infinitely many clips | {infinity_words(infinity)} | | | | | |{extra}"
            )
    if known:
        lines += ["", _caution(report)]
    lines += ["", "## Definitions", ""]
    for name, result in report["metrics"].items():
        weights = f" Weights {code(result['weights'][:16])}." if result["weights"] else ""
        method = f" {result['method']}." if "method" in result else ""
        lines.append(f"- **{name}**: {result['definition']}.{method}{weights}")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += ["", f"Reference: {code(reference['identity'][:16])}. Versions: {versions}."]
    notes = [f"{name}: not computed: {why}" for name, why in report["not_computed"].items()]
    notes += report["warnings"]
    for side in ("audio", "reference"):
        notes += [f"skipped {s['id']} ({side}): {s['reason']}" for s in report[side]["skipped"]]
    if notes:
        lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _caution(report: dict[str, Any]) -> str:
    """The conditions for comparing a figure with a published one."""
    others = [
        name for name, result in report["metrics"].items()
        if result["protocol"] != "audiocraft"
        or (name == "fad" and result["embedding"] != "vggish")
    ]  # fmt: skip
    text = (
        "The published figures are of 5469 clips of MusicCaps (chroma: of 1000 clips that nobody "
        "else has). FAD depends on the number of clips."
    )
    if others:
        text += f" Of another definition, so not comparable: {', '.join(others)}."
    return text


def code(text: str) -> str:
    """Any text as code in a line of Markdown."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def escaped(text: str) -> str:
    """Any text as a line of Markdown that shows it as it is."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
