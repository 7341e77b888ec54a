"""The card of a model on the hub: its base, settings, corpora, license, and what an evaluation measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.download.catalog import catalog
from pipelines.evaluate.model_facts import model_facts
from pipelines.evaluate.report.report import RESULTS
from pipelines.train.provenance import TRAINING
from sigma_data.errors import ConfigError, SigmaError, reason_of
from sigma_data.token_style import printable
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.lora import is_adapter
from sigma_model.peft_adapter import is_peft

_MOST = 64 * 2**20
"""Bytes of a results.json beside a model past which it is not looked into."""


@dataclass(frozen=True)
class Evaluation:
    """A run of a benchmark, as results.json has it."""

    benchmark: str
    families: Sequence[Mapping[str, Any]]
    steps: int | None


def find_evaluations(model: Path, given: Sequence[Path] | None) -> list[Evaluation]:
    """The evaluations of a model's very weights: of the folders `given`, or of those beside it.

    Raises ConfigError for a given folder that is no evaluation, or is of other weights.
    """
    places = sorted(model.absolute().parent.glob(f"*/{RESULTS}")) if given is None else [one / RESULTS for one in given]
    if not places:
        return []
    try:
        digest = model_facts(str(model), base=None).digest
    except SigmaError as error:  # an adapter, or parts alone: nothing says which weights they are
        if given is None:
            return []
        raise ConfigError(f"--eval: {model} cannot be told by its weights ({error}): leave it out") from None
    found = []
    for place in places:
        try:
            results = json.loads(place.read_text("utf-8")) if given or place.stat().st_size <= _MOST else {"runs": []}
            runs = [run for run in results["runs"] if run["settings"].get("weights") == digest]
            found += [
                Evaluation(str(results["benchmark"]), run["families"], run["settings"].get("steps")) for run in runs
            ]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if given is not None:
                raise ConfigError(
                    f"--eval {place.parent}: has no {RESULTS} of `sigma eval` ({reason_of(error)})"
                ) from None
            continue
        if given is not None and not runs:
            raise ConfigError(f"--eval {place.parent}: is of other weights than {model}: evaluate these first")
    return found


def model_card(
    model: Path, *, name: str, license_: str | None, evaluations: Sequence[Evaluation]
) -> tuple[str, str | None]:
    """README.md of a model that is called `name` on the hub, and its license.

    `license_` wins over that of the base, which the export noted. Raises ConfigError where its record is damaged.
    """
    record = _record(model)
    stated = license_ or record.get("base_license")
    base = _hub_name(str(record["base"])) if "base" in record else None
    adapter = is_adapter(model)
    head: dict[str, Any] = {
        **({"license": stated} if stated else {}),
        "library_name": "peft" if is_peft(model) else "sigma",
        "pipeline_tag": "any-to-any" if not is_omnigen2(model) else "image-to-image",
        "tags": ["sigma", "multi-reference", "interleaved", *(["lora"] if adapter or record.get("lora") else [])],
        **({"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"} if base else {}),
        **({"model-index": _index(name, evaluations)} if evaluations else {}),
    }
    sections = [
        f"# {name.rpartition('/')[2]}",
        _about(record, base, adapter),
        *_training(record),
        *_evaluated(evaluations),
        _use(name, adapter, record, stated),
    ]
    yaml_head = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{yaml_head}---\n\n" + "\n\n".join(sections) + "\n", stated


def _record(model: Path) -> dict[str, Any]:
    path = model / TRAINING
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        for name in ("run", "step", "weights", "base", "corpora", "settings"):
            found[name]
        for corpus in found["corpora"]:
            corpus["name"], corpus["split"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)}): export the run again, or remove it") from None
    return dict(found)


def _hub_name(base: str) -> str | None:
    """The repository that a base was downloaded from; None where its folder has another name."""
    folders = {name: entry.repos[0] for entry in catalog() if entry.kind == "model" for name in (entry.folder.name,)}
    return folders.get(base.rstrip("/").rpartition("/")[2])


def _about(record: Mapping[str, Any], base: str | None, adapter: bool) -> str:
    what = "A LoRA adapter" if adapter else "A model"
    if not record:
        return f"{what} that composes an image from several references, uploaded by `sigma upload`."
    of = f"[{base}](https://huggingface.co/{base})" if base else f"`{_cell(record['base'])}`"
    return (
        f"{what} that composes an image from several references: {of}, post-trained with `sigma train` "
        f"(version {_cell(record.get('sigma', 'unknown'))}) for {int(record['step']):,} steps; the weights are those "
        f"of the {_cell(record['weights'])}."
    )


def _training(record: Mapping[str, Any]) -> list[str]:
    if not record:
        return []
    rows = []
    for corpus in record["corpora"]:
        families = ", ".join(f"{name} {count:,}" for name, count in corpus.get("families", {}).items())
        licenses = ", ".join(f"{name} {count:,}" for name, count in corpus.get("licenses", {}).items())
        samples = f"{corpus['samples']:,}" if "samples" in corpus else "-"
        cells = (corpus["name"], corpus["split"], samples, families or "-", licenses or "-")
        fingerprint = corpus.get("manifest")
        rows.append(f"| {' | '.join(map(_cell, cells))} | {f'`{_cell(fingerprint)}`' if fingerprint else '-'} |")
    settings = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True).rstrip().replace("```", "'''")
    return [
        "## Training data\n\n"
        "| corpus | split | samples | families | licenses | SHA-256 of the manifest |\n"
        "|---|---|---:|---|---|---|\n" + "\n".join(rows),
        f"## Configuration\n\n<details><summary>Settings</summary>\n\n```yaml\n{settings}\n```\n\n</details>",
    ]


def _evaluated(evaluations: Sequence[Evaluation]) -> list[str]:
    if not evaluations:
        return []
    rows = [
        f"| {_cell(one.benchmark)} | {_cell(family['family'])} | {_cell(metric)} | {cell['mean']:.4g} | "
        f"{_interval(cell)} | {cell['scored']:,} |"
        for one, family, metric, cell in _cells(evaluations)
    ]
    return [
        "## Evaluation\n\nBy `sigma eval`; intervals are of 95 %, by bootstrap.\n\n"
        "| benchmark | family | metric | mean | interval | items |\n|---|---|---|---:|---|---:|\n" + "\n".join(rows)
    ]


def _index(name: str, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """What the hub shows as evaluation results: `model-index` of a card."""
    results = [
        {
            "task": {"type": "image-to-image"},
            "dataset": {"type": one.benchmark, "name": f"{one.benchmark}: {family['family']}"},
            "metrics": [
                {"type": metric, "name": metric, "value": cell["mean"]}
                for other, inside, metric, cell in _cells([one])
                if inside is family
            ],
        }
        for one in evaluations
        for family in one.families
    ]
    return [{"name": name.rpartition("/")[2], "results": [one for one in results if one["metrics"]]}]


def _cells(
    evaluations: Sequence[Evaluation],
) -> list[tuple[Evaluation, Mapping[str, Any], str, Mapping[str, Any]]]:
    """Evaluation, family, metric and its numbers, of all that was scored."""
    return [
        (one, family, metric, cell)
        for one in evaluations
        for family in one.families
        for metric, cell in family["metrics"].items()
        if cell["mean"] is not None
    ]


def _interval(cell: Mapping[str, Any]) -> str:
    return "-" if cell["low"] is None else f"{cell['low']:.4g} to {cell['high']:.4g}"


def _use(name: str, adapter: bool, record: Mapping[str, Any], license_: str | None) -> str:
    folder = f"models/{name.rpartition('/')[2]}"
    base = f" --model {_cell(record.get('base', 'BASE'))} --adapter {folder}" if adapter else f" --model {folder}"
    stated = license_ or "not stated; that of the base holds"
    return (
        f"## Use\n\n```console\n$ sigma download {name}\n"
        f'$ sigma generate "Put <subject> the dog <image_1> on <background> the beach <image_2>" \\\n'
        f"    --image dog.jpg --image beach.jpg{base} --out out.png\n```\n\n## License\n\n{_cell(stated)}."
        " The licenses of the training data are in the table above, if it has one."
    )


def _cell(text: object) -> str:
    """Text from elsewhere, safe inside a Markdown table."""
    return " ".join(printable(str(text)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'").split())
