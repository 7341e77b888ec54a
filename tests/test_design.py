"""The design's rules about the code itself: the direction of imports, the size of files, no machine's paths."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

LAYERS = ("sigma_data", "sigma_model", "pipelines", "cli")
SOURCES = sorted(path for name in LAYERS for path in [*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/**/*.py")])


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_from_cli_to_pipelines_to_model_to_data_never_back(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    assert not imported(path) & set(LAYERS[layer + 1 :])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_stays_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_only_what_fills_batches_in_the_data_layer_imports_torch() -> None:
    # resample.py resizes with torch, several times faster than Pillow; corpora are built without it (below).
    allowed = {"loader.py", "batch.py", "resample.py"}
    assert not [
        path
        for path in SOURCES
        if "sigma_data" in path.parts and path.name not in allowed and "torch" in imported(path)
    ]


def test_building_a_corpus_needs_no_torch() -> None:
    program = "import sys, pipelines.build_dataset.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
