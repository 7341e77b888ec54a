"""The data set card: README.md of a corpus, for people and for HF `datasets`.

The card's features are what makes `load_dataset(FOLDER)` safe: without them the loader infers its
columns from the first samples and drops images that only later samples have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from sigma_data.corpus.dataset_card_usage import SURPRISES, different_images
from sigma_data.corpus.record import Record, with_current_keys
from sigma_data.corpus.table_rows import TableRows
from sigma_data.sample import FAMILY_RULES, Family

_STRING, _NUMBER = "string", "int64"

_TEXT = """
# {title}

{written:,} samples with {images:,} images in {families} families, built by `sigma build-dataset`.

| family | {splits} | what it teaches |
|---|{bars}---|
{rows}

{read:,} records were read{made}: {taken}{quarantined:,} in quarantine (`quarantine.parquet` says why),
{duplicates:,} duplicates. Samples that share an image, exactly or nearly, lie in one split.

## Licenses

| source | license | samples |
|---|---|---:|
{licenses}

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

A sample is `KEY.json` and one member an image: `KEY.ref_01.jpg`, ..., `KEY.target.jpg`. The JSON's `images` gives each
image's number, member and role; its `turns` hold the instructions, in which `<image_1>` stands where image 1
belongs and an attribute token such as `<style>` before the phrase it governs. `manifest.parquet` has a row a sample,
with the byte range of every image; `corpus.json` has the size and SHA-256 of every file.
{different}
"""


def render_card(*, title: str, manifest: TableRows, sums: Mapping[str, Any], record: bytes) -> str:
    """README.md for a corpus of this manifest and of records like this one: YAML that `datasets` reads, then words.

    There is a configuration for all families (`default`) and one a family, each with the columns
    that its shards really have.
    """
    splits = list(sums["splits"])
    families = [family.value for family in Family if family.value in sums["families"]]
    columns = [(family, member) for family, member, _ in manifest.counts("family", "images.member").iter_rows()]
    counts = {(split, family): n for split, family, n in manifest.counts("split", "family").iter_rows()}
    kinds = _json_feature(manifest, record)
    configs: list[dict[str, Any]] = []
    infos: list[dict[str, Any]] = []
    for name in ("default", *families):
        wanted = families if name == "default" else [name]
        members = sorted({member for family, member in columns if family in wanted})
        pattern = "*" if name == "default" else f"{name}-*"
        files = [
            {"split": split, "path": f"{split}/{pattern}.tar"}
            for split in splits
            if any((split, family) in counts for family in wanted)
        ]
        configs.append({"config_name": name, "data_files": files, **({"default": True} if name == "default" else {})})
        features = [{"name": member, "dtype": "image"} for member in members]
        features += [
            kinds,
            {"name": "__key__", "dtype": _STRING},
            {"name": "__url__", "dtype": _STRING},
        ]
        infos.append({"config_name": name, "features": features})

    licenses = sorted(manifest.counts("source", "license").iter_rows())
    names = sorted({name for _, name, _ in licenses})
    head = {
        "pretty_name": title,
        "license": names[0] if len(names) == 1 and names[0] != "unknown" else "other" if names else "unknown",
        "task_categories": ["image-to-image", "text-to-image"],
        "tags": ["webdataset", "multi-reference", "interleaved", "sigma"],
        "size_categories": [_size_category(sums["written"])],
        "configs": configs,
        "dataset_info": infos,
    }
    rows = "\n".join(
        f"| {family} | {' | '.join(f'{counts.get((split, family), 0):,}' for split in splits)} | "
        f"{FAMILY_RULES[Family(family)].summary} |"
        for family in families
    )
    text = (_TEXT + SURPRISES).format(
        title=title, different=different_images(manifest),
        written=sums["written"], images=sums["images"], families=len(families), read=sums["read"],
        made=f", {sums['made']:,} made from others" if sums.get("made") else "",
        taken=f"{sums['written']:,} written, " + (f"{sums['filtered']:,} filtered, " if sums.get("filtered") else ""),
        quarantined=sums["quarantined"], duplicates=sums["duplicates"],
        splits=" | ".join(splits), bars="---:|" * len(splits), rows=rows,
        licenses="\n".join(f"| {_cell(s)} | {_cell(name)} | {n:,} |" for s, name, n in licenses),
        first_split=splits[0] if splits else "train", first_family=families[0] if families else "editing",
        first_shard=manifest.first(["shard"])["shard"] if sums["written"] else "train/editing-00000.tar",
    )  # fmt: skip

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # the JSON feature stands in every configuration; anchors confuse some readers

    return f"---\n{yaml.dump(head, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)}---\n{text}"


def _json_feature(manifest: TableRows, record: bytes) -> dict[str, Any]:
    """The type of `KEY.json`, with value ranges if any image has one, in the words of this corpus's records."""
    ranges = manifest.counts("images.value_range").drop_nulls()
    feature = {"name": "json", **_feature(Record, without="value_range" if ranges.is_empty() else None)}
    if with_current_keys(record) != record:
        source = next(part for part in feature["struct"] if part["name"] == "source")
        source["struct"][-1]["name"] = "licence"
    return feature


def _feature(kind: Any, without: str | None = None) -> dict[str, Any]:
    """A type of the record as `datasets` writes it into a card; a field named `without` is left out."""
    inner = get_args(kind)[0] if get_args(kind) else None  # of Annotated[T, ...], T | None, list[T]
    if get_origin(kind) is list:
        [members] = _feature(inner, without).values()
        return {"list": members}
    if inner is not None:
        return _feature(inner, without)
    if issubclass(kind, BaseModel):
        fields = {name: field.annotation for name, field in kind.model_fields.items() if name != without}
        return {"struct": [{"name": name, **_feature(field, without)} for name, field in fields.items()]}
    return {"dtype": {bool: "bool", int: _NUMBER, float: "float64"}.get(kind, _STRING)}


def _cell(text: str) -> str:
    """Text from a source, safe inside a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "1M<n<10M"
