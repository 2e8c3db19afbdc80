"""Where the repository, its golden files and the tests' compiled programs lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
COMPILED = ROOT / ".pytest_cache" / "compiled"
