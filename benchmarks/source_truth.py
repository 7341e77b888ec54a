"""What sources read, against what is right.

    python benchmarks/source_truth.py DATA TRUTH [--layout NAME]

DATA/LAYOUT holds a corpus in the layout of its publisher, TRUTH/LAYOUT/TRUTH.json says for each row what a reader must
make of it: status, reason, family, images by SHA-256 (parts cut out of an image by box, size and mean colour), words
and turns, and the counts. Every row is read with the map's filters on and off. Prints each difference; the exit status
is 1 on any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

from injection_truth import injection_differences  # noqa: E402
from truth_rows import (  # noqa: E402
    FILTERED,
    LEGAL,
    QUARANTINE,
    SKIPPED,
    STATUSES,
    Outcome,
    Row,
    compare_row,
    relation_differences,
)

from sigma_data.corpus.check_limits import Limits  # noqa: E402
from sigma_data.corpus.checks import examine  # noqa: E402
from sigma_data.errors import SigmaError  # noqa: E402
from sigma_data.images.decode import DEFAULT_MAX_PIXELS  # noqa: E402
from sigma_data.images.probe_cache import ProbeCache  # noqa: E402
from sigma_data.sample import Family, Rejection, Sample  # noqa: E402
from sigma_data.sources import open_source, source_spec  # noqa: E402
from sigma_data.sources.base import names  # noqa: E402

INJECTION = "injection"
"""The layout that is no corpus but captions to be injected."""
SOURCES = {"x2edit_variants": "x2edit"}
"""Layouts that are read by a map of another name than theirs."""


@dataclass(frozen=True)
class Comparison:
    """What was found for one layout."""

    rows: int
    statuses: Counter[str]
    samples: int
    samples_unfiltered: int
    differences: tuple[str, ...]


def main() -> int:
    """Compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder for each layout")
    parser.add_argument("truth", type=Path, help="folder with LAYOUT/TRUTH.json")
    parser.add_argument("--layout", action="append", help="only this layout; may be given again")
    options = parser.parse_args()
    layouts = options.layout or sorted(path.parent.name for path in options.truth.glob("*/TRUTH.json"))
    wrong = 0
    if not layouts:
        parser.error(f"{options.truth}: holds no LAYOUT/TRUTH.json")
    for layout in layouts:
        try:
            truth = json.loads((options.truth / layout / "TRUTH.json").read_text("utf-8"))
            if layout == INJECTION:
                cases, differences = injection_differences(options.data / layout, truth)
                wrong += _print(f"{layout}: {cases} captions", differences)
                continue
            found = compare(layout, options.data / layout, truth)
        except (SigmaError, OSError, ValueError) as error:
            print(f"{layout}: cannot be compared: {error}")
            wrong += 1
            continue
        statuses = ", ".join(f"{found.statuses[status]} {status}" for status in STATUSES if found.statuses[status])
        samples = f"{found.samples} samples, {found.samples_unfiltered} without filters"
        wrong += _print(f"{layout}: {found.rows} rows ({statuses}), {samples}", found.differences)
    print(f"{len(layouts)} layouts, {wrong} differences")
    return int(wrong > 0)


def _print(what: str, differences: Sequence[str]) -> int:
    """Print a layout's line and its differences; how many there are."""
    verdict = "as it should be" if not differences else f"{len(differences)} DIFFERENCES"
    print("\n  ".join([f"{what}: {verdict}", *differences]))
    return len(differences)


def compare(layout: str, folder: Path, truth: dict[str, Any]) -> Comparison:
    """Read a folder of a layout with filters on and off and compare it. Raises SigmaError if it cannot be read."""
    source = SOURCES.get(layout, layout)
    if source not in names():
        raise SigmaError(f"there is no source {source}:")
    truths: dict[Row, dict[str, Any]] = {(_file(row["file"]), row["row"]): row for row in truth["rows"]}
    differences: list[str] = []
    if len(truths) != len(truth["rows"]):
        differences.append("TRUTH.json names a row twice")
    readings: dict[str, dict[Row, list[Outcome]]] = {}

    def composite(part: dict[str, Any], row: Row) -> bytes:
        return _composite(folder, part, row)

    pairs = "relation_samples_possible" in truth
    for filters in ("on", "off"):
        found = readings[filters] = read(source, folder, filters, computed=_computed(truths))
        for row in sorted(found.keys() | truths.keys(), key=str):
            where = f"filters {filters}: {row[0]} row {row[1]}"
            if row not in truths:
                told = found[row][0]
                differences.append(
                    f"{where}: is read ({told.status} {told.reason or ''}), and TRUTH.json has no such row"
                )
            elif not (pairs and truths[row]["status"] == LEGAL):
                rows = compare_row(truths[row], found.get(row, []), filters=filters == "on", composite=composite)
                differences += [f"{where}: {one}" for one in rows]
            elif row not in found:
                differences.append(f"{where}: was not read")
        if pairs:
            possible = truth["relation_samples_possible"]
            differences += [
                f"filters {filters}: {one}" for one in relation_differences(truths, found, possible, composite)
            ]
    statuses = Counter(outcomes[0].status for outcomes in readings["on"].values())
    samples = {filters: _samples(found) for filters, found in readings.items()}
    if not pairs:
        differences += _counts(truth, readings["on"], statuses, samples)
    return Comparison(len(readings["on"]), statuses, samples["on"], samples["off"], tuple(differences))


def read(
    source: str, folder: Path, filters: str, *, computed: frozenset[Row] = frozenset()
) -> dict[Row, list[Outcome]]:
    """What becomes of every row, samples through a build's checks. Rows of `computed` get their reference later."""
    prober = ProbeCache(max_pixels=DEFAULT_MAX_PIXELS)
    found: dict[Row, list[Outcome]] = {}
    reader = open_source(f"{source_spec(source, str(folder))}?filters={filters}")
    for fragment in reader.fragments():
        for record in reader.read(fragment):
            if isinstance(record, Rejection):
                row = _file(record.location), record.row
                found.setdefault(row, []).append(_rejected(record))
            else:
                row = _file(record.source.location), record.source.row
                found.setdefault(row, []).append(_examined(record, prober, waits=row in computed))
    return found


def _file(location: str) -> str:
    """The file of a location: without what tells samples of a row apart, members of archives where they unpack to."""
    location = re.sub(r"#\w+$", "", location)
    archive, inside, member = location.partition("::")
    return (Path(archive).parent / member).as_posix() if inside else location


def _rejected(record: Rejection) -> Outcome:
    status = QUARANTINE
    if record.filtered:
        status = SKIPPED if record.code == "no_reference" else FILTERED
    return Outcome(status, record.code, record.message)


def _examined(sample: Sample, prober: ProbeCache, *, waits: bool) -> Outcome:
    errors = examine(sample, Limits(), prober=prober).errors
    if sample.family is Family.LAYOUT and not sample.references:
        errors = tuple(error for error in errors if error.code != "no_reference")
        if not errors and not waits:
            return Outcome(SKIPPED, "no_reference", "text to image", sample)
    if errors:
        return Outcome(QUARANTINE, errors[0].code, errors[0].message)
    return Outcome(LEGAL, sample=sample)


def _computed(truths: dict[Row, dict[str, Any]]) -> frozenset[Row]:
    return frozenset(
        row for row, one in truths.items() if any("computed" in part for part in one.get("references", ()))
    )


def _samples(found: dict[Row, list[Outcome]]) -> int:
    return sum(one.status == LEGAL for outcomes in found.values() for one in outcomes)


def _counts(
    truth: dict[str, Any], found: dict[Row, list[Outcome]], statuses: Counter[str], samples: dict[str, int]
) -> Iterator[str]:
    """Differences of the sums."""
    reasons = Counter(outcomes[0].reason for outcomes in found.values() if outcomes[0].reason)
    sums = {
        "rows_total": len(found),
        "rows_by_status": {status: statuses[status] for status in truth.get("rows_by_status", STATUSES)},
        "reasons": dict(sorted(reasons.items())),
        "samples_with_filters": samples["on"],
        "samples_without_filters": samples["off"],
    }
    for name, have in sums.items():
        right = truth.get(name, have)
        if (dict(sorted(right.items())) if isinstance(right, dict) else right) != have:
            yield f"{name}: {have}, right is {right}"


def _composite(folder: Path, part: dict[str, Any], row: Row) -> bytes:
    """The image that a box was cut out of: a file, or the column `image` of the row."""
    if "path" in part:
        return Path(folder, str(part["path"])).read_bytes()
    import pyarrow.parquet as pq

    table = pq.read_table(folder / row[0], columns=["image"])
    value: Any = table.column("image")[row[1]].as_py()
    data: bytes = value["bytes"] if isinstance(value, dict) else value
    return data


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="sigma-truth-") as cache:
        os.environ["SIGMA_CACHE"] = cache
        code = main()
    sys.exit(code)
