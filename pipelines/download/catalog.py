"""What can be downloaded by a name: models, SIGMA's release, backbones of metrics, the corpora of `sigma sources`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.evaluate.metrics.weights import DEFAULTS
from sigma_data.errors import ConfigError
from sigma_model.omnigen2.files import RELEASED as OMNIGEN2

Kind = Literal["model", "dataset"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")
"""What a model's directory needs: pickled copies of weights and remote code stay on the hub."""


@dataclass(frozen=True)
class Entry:
    """Repositories under one name. `include`: globs of the files that are needed; none is all.

    `shape`: the preset, or "omnigen2", that a model has the shape of. `license`: as `sigma sources` has it, for a card
    that says none. `stored_as`: the kind of its repositories, where it is another than its own.
    """

    name: str
    kind: Kind
    repos: tuple[str, ...]
    what: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    shape: str | None = None
    license: str | None = None
    stored_as: Kind | None = None

    @property
    def repo_kind(self) -> Kind:
        """What kind of repository the hub has it in."""
        return self.stored_as or self.kind

    @property
    def folder(self) -> Path:
        """Where it goes unless the user says otherwise: where the recipes and the README look for it."""
        if self.kind == "model":
            return Path("models") / self.repos[0].rpartition("/")[2]
        return Path("data") / self.name


_ENTRIES = (
    Entry(
        "bagel",
        "model",
        ("ByteDance-Seed/BAGEL-7B-MoT",),
        "BAGEL 7B MoT, what SIGMA and SGT start from",
        _WEIGHTS,
        shape="bagel-7b-mot",
    ),
    Entry("omnigen2", "model", ("OmniGen2/OmniGen2",), "OmniGen2", _WEIGHTS, ("*.bin", "*.py"), shape=OMNIGEN2),
    Entry("sgt-bagel", "model", ("Two-hot/SGT-BAGEL",), "SGT's fine-tuned BAGEL", _WEIGHTS, shape="bagel-7b-mot"),
    Entry(
        "sgt-gen2",
        "model",
        ("Two-hot/SGT-Gen2",),
        "SGT's fine-tuned OmniGen2 (the rest is omnigen2's)",
        _WEIGHTS,
        shape=OMNIGEN2,
    ),
    Entry("sigma-dataset", "dataset", ("Xiaoyan667/SIGMA-dataset",), "SIGMA's training data: `release:DIR`"),
    Entry("sigma-benchmark", "dataset", ("Xiaoyan667/SIGMA-Benchmark",), "SIGMA-Benchmark: `sigma eval sigma:DIR`"),
    Entry(
        "cv-bench", "dataset", ("nyu-visionx/CV-Bench",), "CV-Bench: `sigma eval cv-bench:DIR`", ("*.parquet", "*.md")
    ),
    Entry("clip", "model", (DEFAULTS["clip"],), "backbone of CLIP metrics", _WEIGHTS),
    Entry("dino", "model", (DEFAULTS["dino"],), "backbone of DINO metrics", _WEIGHTS),
    Entry("depth", "model", (DEFAULTS["depth"],), "depth: a metric, and conditions of a corpus", _WEIGHTS),
    Entry("gram", "model", (DEFAULTS["gram"],), "backbone of the style metric", _WEIGHTS),
    Entry(
        "aesthetic",
        "model",
        (DEFAULTS["aesthetic"],),
        "aesthetic score",
        ("*.safetensors", "*.json", "*.pth"),
    ),
)

_NO_WEIGHTS = (
    "SIGMA's release names a data set and a benchmark on the hub (sigma-dataset, sigma-benchmark), and no weights: "
    "train them (`sigma train sigma-bagel-7b`), or give the hub name of weights, OWNER/NAME"
)


def catalog() -> list[Entry]:
    """All names, models and benchmarks first. Corpora that are not on the hub are left out."""
    return [*_ENTRIES, *(entry for entry in _corpora() if entry.repos)]


def find_entry(name: str, kind: Kind | None = None) -> Entry:
    """The entry of a name of the list, or of any repository, OWNER/NAME (`kind`: by default a model).

    Raises ConfigError where there is none.
    """
    if _HUB_NAME.fullmatch(name):
        include = _WEIGHTS if (kind or "model") == "model" else ()
        return Entry(name.rpartition("/")[2], kind or "model", (name,), "", include)
    if name.casefold() == "sigma":
        raise ConfigError(_NO_WEIGHTS)
    known = {entry.name: entry for entry in catalog()}
    if name not in known:
        _refuse_reader(name)
        near = difflib.get_close_matches(name.casefold().replace("-", "_"), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`sigma download` lists the names."
        raise ConfigError(f"{name}: nothing of that name to download: {hint} Or give a hub name, OWNER/NAME")
    entry = known[name]
    if kind not in (None, entry.kind):
        raise ConfigError(f"{name}: is a {entry.kind}: leave --{kind} out")
    return entry


_READERS = {
    "hf": "streams data sets of the hub (`hf:OWNER/NAME`): for their files give the name, OWNER/NAME, with --dataset",
    "map": "reads files of your own by a map (`map:FILE.yaml?root=DIR`): download those, by OWNER/NAME and --dataset",
    "release": "reads SIGMA's release: `sigma download sigma-dataset` fetches it",
    "webdataset": "reads corpora that sigma has built: of one on the hub give the name, OWNER/NAME, with --dataset",
    "world": "draws its samples itself, and there is nothing to fetch: `sigma build-dataset world:1000 --out CORPUS`",
}
"""Readers that are no data sets, and what to do instead."""


def _refuse_reader(name: str) -> None:
    """Raises ConfigError for a name of `sigma build-dataset` or `sigma eval` that is no data set of the hub."""
    from pipelines.evaluate.benchmarks import NAMES
    from sigma_data.sources.base import field_maps, names
    from sigma_data.sources.field_map.load import load_shipped

    if name in field_maps():
        found = load_shipped(name)
        raise ConfigError(
            f"{name}: is a layout of files and no repository of the hub: {found.corpus} can be had at "
            f"{', '.join(found.hub)}, and `sigma sources {name}` says how to lay the files out"
        )
    if name in names():
        raise ConfigError(f"{name}: {_READERS.get(name, 'is a reader of files and no data set of the hub')}")
    if name in NAMES:
        raise ConfigError(
            f"{name}: is a benchmark of `sigma eval`, and its data is not on the list: see docs/evaluation.md"
        )


def entry_of_folder(folder: Path) -> Entry | None:
    """The model that a folder of this name is for, whether it is there or not; None for any other name."""
    return next((one for one in _ENTRIES if one.kind == "model" and one.folder.name == folder.name), None)


_PARTS: dict[str, dict[str, Any]] = {
    # Lists of a model's repository.
    "gpt_image_edit_json": {
        "stored_as": "model",
        "include": ("training_json/*",),
        "what": "lists of GPT-Image-Edit-1.5M: 1,553,575 rows; the images are gpt_image_edit's",
    },
    # What RelationAdapter's own script makes of relation252k_raw.
    "relation252k": {"repos": ()},
    # The other, by its name, has tasks that are held out for evaluation.
    "relation252k_raw": {"repos": ("handsomeWilliam/Relation252K",)},
    # 500,000 rows, and enough; the other has 4 million.
    "ultraedit": {"repos": ("BleachNick/UltraEdit_500k",), "what": "UltraEdit: 500,000 rows"},
}
"""Corpora that are not all that is in the repositories of their maps."""


def _corpora() -> list[Entry]:
    from sigma_data.sources.base import field_maps
    from sigma_data.sources.field_map.load import load_shipped

    entries = []
    for name in field_maps():
        found = load_shipped(name)
        entry = Entry(
            name,
            "dataset",
            tuple(one for one in found.hub if _HUB_NAME.fullmatch(one)),
            found.corpus if found.size == "unknown" else f"{found.corpus}: {found.size}",
            license=None if found.license == "unknown" else found.license,
        )
        entries.append(replace(entry, **_PARTS.get(name, {})))
    return entries
