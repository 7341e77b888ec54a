"""A corpus as a WebDataset pipeline: `Corpus.to_webdataset`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_data.corpus.record import RecordError, decode
from sigma_data.errors import ConfigError, CorpusError
from sigma_data.sample import Sample


def to_webdataset(path: Path, commit: Mapping[str, Any], *, split: str, **options: Any) -> Any:
    """What `Corpus.to_webdataset` documents, of the corpus in a folder with this `corpus.json`."""
    import webdataset

    shards = [str(path / shard) for shard in commit["shards"] if shard.partition("/")[0] == split]
    if not shards:
        raise ConfigError(f"{path}: has no split {split!r}: it has {', '.join(commit['sums']['splits'])}")
    chosen = {"shardshuffle": False, "empty_check": False, **options}  # fewer shards than workers are no error
    return webdataset.WebDataset(shards, **chosen).map(sample_of)


def sample_of(members: Mapping[str, Any]) -> Sample:
    """The sample that webdataset groups as `__key__`, `json` and the images' bytes. Raises CorpusError."""
    images = {name: data for name, data in members.items() if isinstance(data, bytes) and name != "json"}
    try:
        return decode(members["json"], images)
    except (KeyError, RecordError) as error:
        where = f"{members.get('__url__', 'a shard')}: sample {members.get('__key__', '')}"
        raise CorpusError(f"{where} cannot be read ({error}); run sigma validate") from None
