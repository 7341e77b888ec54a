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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_message_shows_an_errors_number_and_its_path_again(path: Path) -> None:
    handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
    for handler in handlers:
        caught = {node.id for node in ast.walk(handler.type or handler) if isinstance(node, ast.Name)}
        shown = [node.value for node in ast.walk(handler) if isinstance(node, ast.FormattedValue)]
        whole = [one.lineno for one in shown if isinstance(one, ast.Name) and one.id == handler.name]
        assert "OSError" not in caught or not whole, f"line {whole[0]}: show reason_of(error)"


@pytest.mark.slow
def test_only_what_fills_batches_in_the_data_layer_imports_torch() -> None:
    # depth.py runs a model, if depth is asked for. resample.py resizes with torch, several times faster than Pillow; corpora are built without it (below).
    filling = {"loader.py", "pack_dataset.py", "batch.py", "collate.py", "crossing.py"}
    allowed = {*filling, "resample.py", "torch_compat.py", "depth.py"}
    assert not [
        path
        for path in SOURCES
        if "sigma_data" in path.parts and path.name not in allowed and "torch" in imported(path)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("modules", ["pipelines.build_dataset.run", "pipelines.app.run, pipelines.app.markup"])
def test_building_a_corpus_and_serving_the_apps_page_need_no_torch(modules: str) -> None:
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


PACKAGES = LAYERS[:3]


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules it imports, `if TYPE_CHECKING` and imports inside functions included."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in PACKAGES
    }
    graph = {}
    for module, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in names else node.module for name in full}
        graph[module] = found & names.keys() - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The sets of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        open_nodes = [start]
        while open_nodes:
            new = graph[open_nodes.pop()] - seen
            seen |= new
            open_nodes += new
        return seen

    reach = {node: reached(node) for node in graph}
    return {frozenset(other for other in reach[node] if node in reach[other]) for node in graph if node in reach[node]}


@pytest.mark.slow
def test_no_two_modules_and_no_two_rooms_import_each_other_in_a_circle() -> None:
    modules = import_graph()
    assert circles(modules) == set()

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    rooms: dict[str, set[str]] = {room(module): set() for module in modules}
    for module, found in modules.items():
        rooms[room(module)] |= {room(other) for other in found} - {room(module)} - set(PACKAGES)
    assert circles(rooms) == set()
