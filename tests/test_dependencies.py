"""What is declared is what the product imports, and what is pinned is what the declared packages need."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from support.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PRODUCT = [
    ROOT / "cli.py",
    *(path for top in ("sigma_data", "sigma_model", "pipelines") for path in (ROOT / top).rglob("*.py")),
]
OURS = {"cli", "sigma_data", "sigma_model", "pipelines", "benchmarks", "tools", "tests", "support"}
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
THROUGH = {
    "tensorboard": "torch.utils.tensorboard", "s3fs": "fsspec", "gcsfs": "fsspec", "flask": "moto.server", "flask-cors": "moto.server",
}  # fmt: skip
"""Packages that are used through another one."""
ASKED_FOR = {"wandb", "dreamsim"}
"""Imported where a user asks for them, with a message that says how to install them; no extra has them."""
TOOLS = {"ipykernel", "mypy", "ruff", "pytest-xdist", "types-pyyaml"}
"""Of the extra `dev`: run, not imported."""


def name_of(requirement: str) -> str:
    """The distribution's name in a requirement, normalised."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


DECLARED = {name_of(one) for packages in (PROJECT["dependencies"], *EXTRAS.values()) for one in packages}


def imported(paths: list[Path]) -> set[str]:
    """Every module that these files import, dotted, at the top or in a function; names given to `import_module` too."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ("import_module", "package"):
                    found.add(str(node.args[0].value))
    return found


@cache
def product_imports() -> frozenset[str]:
    return frozenset(imported(PRODUCT))


def is_used(name: str, modules: frozenset[str] | set[str]) -> bool:
    module = THROUGH.get(name) or MODULES.get(name) or name.replace("-", "_")
    return any(one == module or one.startswith(f"{module}.") for one in modules)


@pytest.mark.slow
def test_every_declared_package_is_imported_by_the_product() -> None:
    declared = PROJECT["dependencies"] + [
        one for extra, packages in EXTRAS.items() if extra != "dev" for one in packages
    ]
    unused = {name_of(one) for one in declared if not is_used(name_of(one), product_imports())}
    assert unused == set()


@pytest.mark.slow
def test_every_package_of_the_dev_extra_is_used() -> None:
    used = product_imports() | imported([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
    assert {name_of(one) for one in EXTRAS["dev"] if not is_used(name_of(one), used)} == TOOLS


def test_every_import_of_the_product_is_declared() -> None:
    tops = {name.split(".")[0] for name in product_imports()} - OURS - set(sys.stdlib_module_names)
    assert tops - {MODULES.get(name) or name.replace("-", "_") for name in DECLARED} == ASKED_FOR


def pins() -> dict[str, set[str]]:
    """Of each pinned distribution, what needs it: `constraints.txt` is `NAME==VERSION  # via A, B` a line."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines[0].startswith("# uv pip compile pyproject.toml "), "the command that wrote it stands first"
    found = {}
    for line in lines[1:]:
        pin = re.fullmatch(r"([a-z0-9-]+)==\S+ +# via (.+)", line)
        assert pin is not None, line
        found[pin[1]] = {word.removesuffix(" (pyproject.toml)") for word in pin[2].split(", ")}
    return found


def test_every_pin_is_needed_by_a_declared_package() -> None:
    needed_by = pins()
    direct = {name for name, parents in needed_by.items() if PROJECT["name"] in parents}
    # flash-attn is built on the machine that uses it; gcsfs must have the version of fsspec, which is pinned.
    assert direct == DECLARED - {"flash-attn", "gcsfs"}
    for name, parents in needed_by.items():
        assert parents <= {PROJECT["name"], *needed_by}, name
    reached, front = set(direct), set(direct)
    while front:
        front = {name for name, parents in needed_by.items() if parents & front} - reached
        reached |= front
    assert reached == set(needed_by)


def test_what_a_pin_says_needs_it_does_need_it() -> None:
    for name, parents in pins().items():
        for parent in parents - {PROJECT["name"]}:
            try:
                requires = distribution(parent).requires or []
            except PackageNotFoundError:  # an extra that is not installed here
                continue
            assert name in {name_of(one) for one in requires}, f"{parent} does not need {name}: make constraints"
