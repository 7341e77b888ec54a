"""How long pages of `sigma browse` take on a corpus of many samples: `python benchmarks/browse.py CORPUS`.

The manifest of a small corpus is repeated, each time with other ids and components; shards are its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.browse.corpus_site import CorpusSite
from sigma_data.corpus.corpus import COMMIT, MANIFEST, file_digest, open_corpus

GROUP = 65_536
"""Rows of a group, as a build writes them."""


def main() -> None:
    """Make the corpus, open it, ask for its pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--samples", type=int, default=700_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = repeated(options.corpus.resolve(), Path(folder), options.samples)
        site = timed("open", lambda: CorpusSite(open_corpus(large)))
        last = str(options.samples - 1)
        for name, path, query in (
            ("first page", [], {}),
            ("last page", [], {"page": "999999"}),
            ("family and split", [], {"family": "editing", "split": "val"}),
            ("attribute token", [], {"token": "style"}),
            ("words", [], {"words": "penguin"}),
            ("a sample", ["sample", last], {}),
            ("a thumbnail", ["image", last, "1"], {"small": ""}),
            ("shared images", ["pairs"], {}),
            ("quarantine", ["quarantine"], {}),
        ):
            timed(name, lambda path=path, query=query: site.answer(path, query))  # type: ignore[misc]


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Print what it took."""
    processor, wall = time.process_time(), time.perf_counter()
    found = work()
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<18} {processor:7.3f} s CPU {wall:7.3f} s   peak {peak:5.0f} MiB", flush=True)
    return found


def repeated(source: Path, out: Path, samples: int) -> Path:
    """A corpus with the manifest of `source`, repeated."""
    table = pq.read_table(source / MANIFEST)
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(out / MANIFEST, table.schema, compression="zstd") as writer:
        for start in range(0, samples, len(table)):
            part = table.slice(0, min(len(table), samples - start))
            for name in ("id", "component"):
                place = part.schema.get_field_index(name)
                values = pa.array([f"{value[:20]}{start:08d}" for value in part[name].to_pylist()])
                part = part.set_column(place, part.schema.field(place), values)
            waiting.append(part)
            if sum(map(len, waiting)) >= GROUP or start + len(table) >= samples:
                writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=GROUP)
                waiting.clear()
    commit = json.loads((source / COMMIT).read_text())
    size, digest = file_digest(out / MANIFEST)
    commit["files"][MANIFEST] = {"bytes": size, "sha256": digest}
    (out / COMMIT).write_text(json.dumps(commit))
    for path in source.iterdir():
        if not (out / path.name).exists() and not path.name.startswith("."):
            (out / path.name).symlink_to(path)
    return out


if __name__ == "__main__":
    main()
