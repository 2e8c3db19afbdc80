"""The notebook runs from top to bottom, as a plain program: no kernel is needed."""

import json
import os

import pytest

from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "examples/quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_carries_no_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_the_cells_for_colab_say_that_they_were_not_run():
    assert any("was not run on Colab" in "".join(cell["source"]) for cell in CELLS)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    names: dict = {"__name__": "__main__"}
    for number, code in enumerate(CODE):
        exec(compile(code, f"cell {number}", "exec"), names)
    assert (tmp_path / "quickstart/report/report.html").is_file()
