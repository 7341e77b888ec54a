"""The notebook is kept without outputs, and runs from top to bottom in a folder that holds nothing."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.places import ROOT

NOTEBOOK = ROOT / "examples" / "demo.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = "".join(output.data["text/html"] for output in outputs if "text/html" in output.get("data", {}))
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert html.count("<figure") == 3, "a sample of two references and a target"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "mean difference of 255" in text
    assert "samples_per_second" in html
    assert (tmp_path / "notebook-out" / "run" / "metrics.jsonl").read_text().count("\n") == 3
