"""What an export was trained on and how, in `training.json` beside its weights: what a model card is written from.

Folders of this machine are named by their last part alone, for an export is made to be given away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from pipelines.train.config import TrainConfig
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.start_description import Description
from sigma_data.corpus.corpus import CARD, MANIFEST, open_corpus
from sigma_data.corpus.manifest import manifest_schema
from sigma_data.corpus.table_rows import FileRows
from sigma_data.errors import SigmaError
from sigma_data.version import sigma_version
from sigma_model.config import PRESETS
from sigma_model.omnigen2.files import PRESETS as OMNIGEN2_PRESETS

TRAINING = "training.json"
_OURS = "apache-2.0"
"""Of the embedded models."""


def training_record(
    config: TrainConfig, description: Description, *, run: str, step: int, ema: bool, data: Mapping[str, Any]
) -> dict[str, Any]:
    """What `training.json` holds of the checkpoint of `step`, whose state of the loader is `data`.

    `description` is of the weights that the run started from. A corpus is told by the SHA-256 of the manifest that was
    trained on; what it holds is added where it still lies at its place.
    """
    return {
        "sigma": sigma_version(),
        "run": run,
        "step": step,
        "weights": "EMA" if ema else "last step",
        "base": _short(config.model.from_run or config.model.path),
        **({} if config.model.adapter is None else {"base_adapter": config.model.adapter.name}),
        "base_license": _license_of(config.start, description),
        "lora": config.lora is not None,
        "corpora": [
            {"name": _short(corpus.title), "split": corpus.split, **_content(corpus.path, _manifest(data, number))}
            for number, corpus in enumerate(config.data.corpora, 1)
        ],
        "settings": _without_folders(config.model_dump(mode="json", exclude_unset=True)),
    }


def _license_of(start: str, description: Description) -> str | None:
    """As the card beside the weights states it; None where there is none."""
    if start in (*PRESETS, *OMNIGEN2_PRESETS):
        return _OURS
    if isinstance(description, Omnigen2Description):
        return stated_license(description.files.transformer.parent / CARD)
    return stated_license(description.directory / CARD)


def stated_license(card: Path) -> str | None:
    """What a card for the hub says in its head; None where there is no such card, or it says nothing."""
    try:
        head = card.read_text("utf-8").split("---\n", 2)
        found = yaml.safe_load(head[1]) if len(head) == 3 and not head[0].strip() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    license_ = found.get("license") if isinstance(found, dict) else None
    return license_ if isinstance(license_, str) else None


def _manifest(data: Mapping[str, Any], number: int) -> str | None:
    """The digest of a corpus's manifest, as the checkpoint has it."""
    try:
        found = json.loads(data["plan"]["fields"][f"corpus {number}"])["manifest"]
    except (KeyError, TypeError, ValueError):
        return None
    return str(found)


def _content(place: str, manifest: str | None) -> dict[str, Any]:
    told: dict[str, Any] = {"manifest": manifest}
    try:
        corpus = open_corpus(place)
        if manifest not in (None, corpus.commit["files"][MANIFEST]["sha256"]):
            return told  # rebuilt since
        rows = FileRows(corpus.path / MANIFEST, manifest_schema())
        licenses = dict(sorted(rows.counts("license").iter_rows())) if corpus.uri is None else {}
    except (SigmaError, OSError):
        return told
    return told | {
        "manifest": corpus.commit["files"][MANIFEST]["sha256"],
        "samples": corpus.sums["written"],
        "families": dict(corpus.sums["families"]),
        "licenses": licenses,
    }


def _short(place: str) -> str:
    """A folder's own name; names of presets, of the hub and of models are left as they are."""
    return PurePath(place).name if Path(place).is_absolute() or place.startswith((".", "~")) else place


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return _short(value) if isinstance(value, str) else value
