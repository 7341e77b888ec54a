"""Python, packages, torch's build against the driver, GPUs and flash-attn.

Each check is a function of what the machine says; `look_*` ask it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.doctor.finding import Finding, fail, ok, warn
from sigma_data.text_format import format_bytes

DISTRIBUTION = "sigma-multimodal"
TESTED = {
    "datasets": "5.2.0",
    "numpy": "2.4.6",
    "pillow": "12.3.0",
    "polars": "2.1.0",
    "pyarrow": "26.0.1",
    "pydantic": "2.14.3",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "webdataset": "1.0.2",
}
"""Versions that the test suite runs with, as constraints.txt pins them."""

PYTHON = (3, 11)
_NATIVE_BFLOAT16 = (8, 0)
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class TorchBuild:
    """torch as it is installed: `cuda` is the version it was built for; `usable` whether a GPU answers."""

    version: str
    cuda: str | None
    rocm: str | None
    usable: bool
    warning: str = ""
    """What torch said when it was asked for GPUs."""


@dataclass(frozen=True)
class Gpu:
    """A GPU; memory in bytes. `built_for`: whether this torch has code for its architecture."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    built_for: bool = True


def check_python(version: tuple[int, int, int], platform: str) -> Finding:
    """Python's version and the operating system."""
    found = f"{'.'.join(map(str, version))} on {platform}"
    if version[:2] < PYTHON:
        return fail("Python", found, f"sigma needs {'.'.join(map(str, PYTHON))} or later: make the environment with it")
    if platform == "win32":
        return fail("Python", found, "sigma runs on Linux and macOS: use WSL 2")
    return ok("Python", found)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cu130 is (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*|", version)[0].split(".") if part)  # type: ignore[index]


def minimums(requirements: Sequence[str]) -> dict[str, str]:
    """Package -> least version, of the requirements that no extra asks for."""
    found = {}
    for line in requirements:
        if match := re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)\s*$", line):
            found[match[1].lower()] = match[2]
    return found


def check_packages(installed: dict[str, str | None], least: dict[str, str]) -> list[Finding]:
    """Installed versions against the least that is declared, and against those that were tested."""
    absent = [name for name, version in installed.items() if version is None]
    old = [
        f"{name} {version} (at least {least[name]})"
        for name, version in installed.items()
        if version is not None and name in least and numbers(version) < numbers(least[name])
    ]
    findings = []
    if absent or old:
        told = [f"{', '.join(absent)} not installed"] if absent else []
        told += [f"too old: {', '.join(old)}"] if old else []
        findings.append(fail("packages", "; ".join(told), f"pip install --upgrade {DISTRIBUTION}"))
    untested = [
        f"{name} {version} (tested: {TESTED[name]})"
        for name, version in installed.items()
        if version is not None and numbers(version)[:1] != numbers(TESTED[name])[:1]
    ]
    if untested:
        advice = "works as a rule; if something fails, install with -c constraints.txt of the repository"
        findings.append(warn("packages", f"another major version: {', '.join(untested)}", advice))
    if not findings:
        named = ", ".join(f"{name} {installed[name]}" for name in ("torch", "transformers", "polars"))
        findings.append(ok("packages", f"{named} and {len(installed) - 3} others as tested"))
    return findings


def check_torch(build: TorchBuild, driver: str | None) -> Finding:
    """Torch's build against the driver; `driver` None is a machine without NVIDIA's."""
    made = f"CUDA {build.cuda}" if build.cuda else f"ROCm {build.rocm}" if build.rocm else "CPU"
    found = f"{build.version}, built for {made}"
    if build.usable:
        return ok("torch", f"{found}; driver {driver}" if driver else found)
    if driver is None:
        return ok("torch", f"{found}; no GPU here: the tiny models train on the CPU")
    if build.cuda is None:
        return fail(
            "torch",
            f"{found}, but there is an NVIDIA GPU (driver {driver})",
            "install a CUDA build of torch first: https://pytorch.org/get-started/locally",
        )
    said = f": {build.warning}" if build.warning else ""
    return fail(
        "torch",
        f"{found}, and the driver {driver} does not serve it{said}",
        f"install a driver for CUDA {build.cuda}, or a torch built for the CUDA that nvidia-smi shows",
    )


def check_gpus(gpus: Sequence[Gpu]) -> list[Finding]:
    """Each GPU: whether torch has code for it, whether its memory is free, whether it computes in bfloat16."""
    findings = []
    for number, gpu in enumerate(gpus):
        name = f"GPU {number}"
        found = f"{gpu.name}, {format_bytes(gpu.free)} of {format_bytes(gpu.total)} free"
        kind = ".".join(map(str, gpu.capability))
        if not gpu.built_for:
            advice = f"install a torch build with compute capability {kind} (torch.cuda.get_arch_list() lists its own)"
            findings.append(fail(name, f"{found}; this torch has no code for it", advice))
        elif gpu.capability < _NATIVE_BFLOAT16:
            advice = "it computes bfloat16 slowly or not at all: set model.dtype=float32 for small models"
            findings.append(warn(name, f"{found}; compute capability {kind}", advice))
        elif gpu.free < 0.9 * gpu.total:
            advice = "another process holds its memory: `nvidia-smi` names it"
            findings.append(warn(name, found, advice))
        else:
            findings.append(ok(name, found))
    names = {gpu.name for gpu in gpus}
    if len(names) > 1:
        advice = "the slowest sets the pace, the smallest the budget: pick like ones with CUDA_VISIBLE_DEVICES"
        findings.append(warn("GPUs", f"of {len(names)} kinds: {', '.join(sorted(names))}", advice))
    return findings


def check_flash_attn(version: str | None, error: str, *, gpus: bool) -> Finding:
    """flash-attn is optional; `error` is why an installed one cannot be imported."""
    if version is None:
        more = "; `pip install flash-attn` speeds up sampling" if gpus else ""
        return ok("flash-attn", f"not installed, and not needed{more}")
    if error:
        advice = (
            "it was built for another torch: build it anew (pip install --no-build-isolation flash-attn) or remove it"
        )
        return warn("flash-attn", f"{version} cannot be imported ({error})", advice)
    return ok("flash-attn", version)


def look_python() -> Finding:
    """Of this process."""
    return check_python(sys.version_info[:3], sys.platform)


def look_packages() -> list[Finding]:
    """Of this environment."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        requirements = []
    return check_packages({name: _version(name) for name in TESTED}, minimums(requirements))


def look_torch() -> list[Finding]:
    """Torch, its GPUs, flash-attn."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    warning = str(said[0].message).split("\n")[0].strip() if said else ""
    build = TorchBuild(torch.__version__, torch.version.cuda, torch.version.hip, usable, warning)
    gpus = []
    for number in range(torch.cuda.device_count() if usable else 0):
        free, total = torch.cuda.mem_get_info(number)
        capability = torch.cuda.get_device_capability(number)
        gpus.append(Gpu(torch.cuda.get_device_name(number), total, free, capability, _built_for(capability)))
    version = _version("flash-attn")
    error = _import_error(lambda: importlib.import_module("flash_attn")) if version else ""
    return [check_torch(build, _driver()), *check_gpus(gpus), check_flash_attn(version, error, gpus=bool(gpus))]


def _built_for(capability: tuple[int, int]) -> bool:
    """Code of the same major architecture serves, or PTX of an older one, which the driver compiles."""
    import torch

    found = [
        (kind, int(number)) for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(torch.cuda.get_arch_list()))
    ]
    own = capability[0] * 10 + capability[1]
    binary = any(kind == "sm" and number // 10 == capability[0] and number <= own for kind, number in found)
    return not found or binary or any(kind == "compute" and number <= own for kind, number in found)


def _driver() -> str | None:
    """NVIDIA's driver version; "unknown" where there is a driver that does not say it."""
    tool = shutil.which("nvidia-smi")
    if tool:
        asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(  # noqa: S603
                asked, capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return next(iter(answer.stdout.split()), "unknown")
    return "unknown" if _NVIDIA.exists() else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error(load: Callable[[], object]) -> str:
    """Why it cannot be imported, in a line: a library of another build raises about anything."""
    try:
        load()
    except Exception as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:160]
    return ""
