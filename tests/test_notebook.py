"""The notebook is kept without outputs; test_wheel.py runs it from top to bottom."""

from __future__ import annotations

import nbformat
from support.places import ROOT


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(ROOT / "examples" / "demo.ipynb", 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)
