"""The data set card: README.md of a corpus, for people and for HF `datasets`.

The card's features are what makes `load_dataset(FOLDER)` safe: without them the loader infers its
columns from the first samples and drops pictures that only later samples have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import yaml

from sigma_data.corpus.dataset_card_usage import SURPRISES, different_images
from sigma_data.sample import FAMILY_RULES, Family

_STRING, _NUMBER = "string", "int64"

_JSON_FEATURE: dict[str, Any] = {
    "name": "json",
    "struct": [
        {"name": "schema_version", "dtype": _NUMBER},
        {"name": "id", "dtype": _STRING},
        {"name": "family", "dtype": _STRING},
        {"name": "family_inferred", "dtype": "bool"},
        {
            "name": "images",
            "list": [
                {"name": "number", "dtype": _NUMBER},
                {"name": "member", "dtype": _STRING},
                {"name": "role", "dtype": _STRING},
                {"name": "width", "dtype": _NUMBER},
                {"name": "height", "dtype": _NUMBER},
            ],
        },
        {
            "name": "turns",
            "list": [
                {"name": "instruction", "dtype": _STRING},
                {"name": "target", "dtype": _NUMBER},
                {"name": "response", "dtype": _STRING},
                {"name": "alternatives", "list": _STRING},
                {
                    "name": "bindings",
                    "list": [{"name": "token", "dtype": _NUMBER}, {"name": "image", "dtype": _NUMBER}],
                },
            ],
        },
        {
            "name": "source",
            "struct": [
                {"name": "name", "dtype": _STRING},
                {"name": "location", "dtype": _STRING},
                {"name": "row", "dtype": _NUMBER},
                {"name": "licence", "dtype": _STRING},
            ],
        },
        {"name": "truth", "dtype": _STRING},
    ],
}

_TEXT = """
# {title}

{written:,} samples with {images:,} pictures in {families} families, built by `sigma build-dataset`.

| family | {splits} | what it teaches |
|---|{bars}---|
{rows}

{read:,} records were read: {written:,} written, {quarantined:,} in quarantine (`quarantine.parquet` says why),
{duplicates:,} duplicates. Samples that share a picture, exactly or nearly, lie in one split.

## Licences

| source | licence | samples |
|---|---|---:|
{licences}

## Reading it

```python
from datasets import load_dataset

corpus = load_dataset("PATH/TO/THIS/FOLDER", split="{first_split}")  # or ..., "{first_family}", split=...
```

```python
import webdataset as wds

samples = wds.WebDataset("{first_shard}", shardshuffle=False).decode("pil")
```

Both take a path for a pattern or a URL: where the name of this folder, or of one above it, holds brackets, stars, `?`,
`#` or colons, rename it before you read it so (`sigma` itself takes every name as it is).

A sample is `KEY.json` and one member a picture: `KEY.ref_01.jpg`, ..., `KEY.target.jpg`. The JSON's `images` gives each
picture's number, member and role; its `turns` hold the instructions, in which `<image_1>` stands where picture 1
belongs and an attribute token such as `<style>` before the phrase it governs. `manifest.parquet` has a row a sample,
with the byte range of every picture; `corpus.json` has the size and SHA-256 of every file.
{different}
"""


def render_card(*, title: str, manifest: pl.DataFrame, sums: Mapping[str, Any]) -> str:
    """README.md for a corpus of this manifest: YAML that `datasets` reads, then words.

    There is a configuration for all families (`default`) and one a family, each with the columns
    that its shards really have.
    """
    splits = list(sums["splits"])
    families = [family.value for family in Family if family.value in sums["families"]]
    columns = (
        manifest.select("family", pl.col("images").list.eval(pl.element().struct.field("member")).alias("member"))
        .explode("member", empty_as_null=False)
        .unique()
        .sort("member")
    )
    present = set(manifest.select("split", "family").unique().iter_rows())
    configs: list[dict[str, Any]] = []
    infos: list[dict[str, Any]] = []
    for name in ("default", *families):
        wanted = families if name == "default" else [name]
        members = columns.filter(pl.col("family").is_in(wanted))["member"].unique().sort().to_list()
        pattern = "*" if name == "default" else f"{name}-*"
        files = [
            {"split": split, "path": f"{split}/{pattern}.tar"}
            for split in splits
            if any((split, family) in present for family in wanted)
        ]
        configs.append({"config_name": name, "data_files": files, **({"default": True} if name == "default" else {})})
        features = [{"name": member, "dtype": "image"} for member in members]
        features += [
            _json_feature(manifest),
            {"name": "__key__", "dtype": _STRING},
            {"name": "__url__", "dtype": _STRING},
        ]
        infos.append({"config_name": name, "features": features})

    licences = manifest.group_by("source", "licence").len().sort("source", "licence")
    names = licences["licence"].unique().sort().to_list()
    head = {
        "pretty_name": title,
        "license": names[0] if len(names) == 1 and names[0] != "unknown" else "other" if names else "unknown",
        "task_categories": ["image-to-image", "text-to-image"],
        "tags": ["webdataset", "multi-reference", "interleaved", "sigma"],
        "size_categories": [_size_category(sums["written"])],
        "configs": configs,
        "dataset_info": infos,
    }
    counts = {(split, family): n for split, family, n in manifest.group_by("split", "family").len().iter_rows()}
    rows = "\n".join(
        f"| {family} | {' | '.join(f'{counts.get((split, family), 0):,}' for split in splits)} | "
        f"{FAMILY_RULES[Family(family)].summary} |"
        for family in families
    )
    text = (_TEXT + SURPRISES).format(
        title=title, different=different_images(manifest),
        written=sums["written"], images=sums["images"], families=len(families), read=sums["read"],
        quarantined=sums["quarantined"], duplicates=sums["duplicates"],
        splits=" | ".join(splits), bars="---:|" * len(splits), rows=rows,
        licences="\n".join(f"| {_cell(s)} | {_cell(licence)} | {n:,} |" for s, licence, n in licences.iter_rows()),
        first_split=splits[0] if splits else "train", first_family=families[0] if families else "editing",
        first_shard=manifest["shard"][0] if len(manifest) else "train/editing-00000.tar",
    )  # fmt: skip

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # the JSON feature stands in every configuration; anchors confuse some readers

    return f"---\n{yaml.dump(head, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)}---\n{text}"


def _json_feature(manifest: pl.DataFrame) -> dict[str, Any]:
    """The type of `KEY.json`, with value ranges where images have some."""
    ranges = manifest["images"].explode().drop_nulls().struct.field("value_range")
    if ranges.null_count() == len(ranges):
        return _JSON_FEATURE
    images = next(part for part in _JSON_FEATURE["struct"] if part["name"] == "images")
    known = {"name": "value_range", "struct": [
        {"name": "rule", "dtype": _STRING}, {"name": "low", "dtype": "float64"}, {"name": "high", "dtype": "float64"},
    ]}  # fmt: skip
    parts = [part | {"list": [*part["list"], known]} if part is images else part for part in _JSON_FEATURE["struct"]]
    return {"name": "json", "struct": parts}


def _cell(text: str) -> str:
    """Text from a source, safe inside a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "1M<n<10M"
