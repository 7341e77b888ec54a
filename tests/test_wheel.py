"""The wheel in a fresh environment: from a folder with a `cli.py`, a `pipelines/` and a `configs/`, and in the notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.places import ROOT

pytestmark = pytest.mark.slow

PACKED = ("sigma_data", "sigma_model", "pipelines", "configs", "cli.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if (ROOT / name).is_dir() else {}))
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "-w", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A project with modules of the same names."""
    (tmp_path / "cli.py").write_text("raise RuntimeError('a foreign cli')\n")
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("raise RuntimeError('a foreign pipelines')\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("a: 1\n")
    return tmp_path


def sigma(environment: Path, *arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": path}
    command = [str(environment / "bin" / "sigma"), *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_three_packages_with_types_and_the_configurations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "sigma_data",
        "sigma_model",
        "pipelines",
    }
    for package in ("sigma_data", "sigma_model", "pipelines"):
        assert f"{package}/py.typed" in names
    for config in (ROOT / "configs").glob("*.yaml"):
        assert f"pipelines/configs/{config.name}" in names
    for template in [
        *ROOT.glob("sigma_data/**/*.j2"),
        *ROOT.glob("pipelines/**/*.j2"),
        *ROOT.glob("pipelines/**/*.js"),
        *ROOT.glob("pipelines/**/*.css"),
    ]:
        assert template.relative_to(ROOT).as_posix() in names


def test_it_works_from_a_folder_with_modules_of_the_same_names(environment: Path, foreign: Path) -> None:
    help_ = sigma(environment, "--help", cwd=foreign)
    assert (help_.returncode, help_.stderr) == (0, "")
    built = sigma(environment, "build-dataset", "world:12?size=64", "--out", "corpus", "--workers", "2", cwd=foreign)
    assert built.returncode == 0, built.stderr
    settings = (
        "out=run",
        "steps=1",
        "data.corpora=[corpus]",
        "data.budget=2000",
        "validation.every=0",
        "loader.workers=1",
    )
    trained = sigma(environment, "train", "configs/quickstart.yaml", *settings, cwd=foreign)
    assert trained.returncode == 0, trained.stderr
    assert (foreign / "run" / "metrics.jsonl").exists()


def test_a_configuration_of_ours_is_found_by_name_and_a_file_of_the_user_comes_first(
    environment: Path, foreign: Path
) -> None:
    for name in ("sigma-lora", "configs/sigma-lora.yaml"):
        printed = sigma(environment, "train", name, "--print-config", cwd=foreign)
        assert printed.returncode == 0, printed.stderr
        assert "lora:" in printed.stdout
    assert "configs/mine.yaml" in sigma(environment, "train", "configs/mine.yaml", cwd=foreign).stderr
    missing = sigma(environment, "train", "configs/nowhere.yaml", cwd=foreign)
    assert missing.returncode == 2
    assert "configs/nowhere.yaml" in missing.stderr


def test_another_pipelines_that_comes_first_is_named_in_one_line(environment: Path, foreign: Path) -> None:
    hidden = sigma(environment, "--help", cwd=foreign, path=str(foreign))
    assert hidden.returncode == 2
    assert hidden.stderr.count("\n") == 1
    assert f"{foreign / 'pipelines'} hides the package `pipelines` of sigma" in hidden.stderr


def test_the_notebook_runs_from_top_to_bottom(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = {"argv": [str(environment / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    (tmp_path / "jupyter" / "kernels" / "wheel").mkdir(parents=True)
    (tmp_path / "jupyter" / "kernels" / "wheel" / "kernel.json").write_text(
        json.dumps({**kernel, "display_name": "wheel", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = nbformat.read(ROOT / "examples" / "demo.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell("import sigma_model\nprint(sigma_model.__file__)"))
    NotebookClient(notebook, timeout=300, kernel_name="wheel", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = "".join(output.data["text/html"] for output in outputs if "text/html" in output.get("data", {}))
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert html.count("<figure") == 3, "a sample of two references and a target"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "mean difference of 255" in text
    assert "samples_per_second" in html
    assert (tmp_path / "notebook-out" / "run" / "metrics.jsonl").read_text().count("\n") == 3
    assert text.splitlines()[-1].startswith(str(environment)), "the wheel ran, not the checkout"
