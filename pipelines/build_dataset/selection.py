"""Samples that a plan leaves out by choice: those with images of a benchmark, and those above a quota."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.scan_columns import ScanImages
from sigma_data.images.fingerprint import hash_fraction
from sigma_data.images.fingerprint_file import KnownImages

_SLICE = 65_536


def drop_excluded(
    rows: pl.DataFrame, images: ScanImages, excluded: KnownImages
) -> tuple[NDArray[np.bool_], pl.DataFrame]:
    """Which samples to keep, and those of which any image is one of these, exactly or nearly."""
    match, same = excluded.match(images.sha256.high, images.sha256.low, images.signatures)
    hits = np.flatnonzero(match[images.image] >= 0)
    _, first = np.unique(images.sample[hits], return_index=True)
    hits = hits[first]
    messages = []
    for number, image in zip(images.number[hits].tolist(), images.image[hits].tolist(), strict=True):
        known = excluded.prints[match[image]]
        like = "the same as" if same[image] else "nearly identical to"
        messages.append(f"image {number} is {like} {known.name or known.sha256}, to be excluded")
    kept = np.ones(len(rows), dtype=bool)
    kept[images.sample[hits]] = False
    places = images.sample[hits].astype(np.int64)
    return kept, left_out(rows, places, "benchmark_image", pl.Series(messages, dtype=pl.String), filtered=True)


def apply_quotas(rows: pl.DataFrame, config: BuildConfig) -> tuple[NDArray[np.bool_], pl.DataFrame]:
    """Keep the quota's number of samples a family (and a source's share), those with the lowest hash of their id."""
    kept = np.ones(len(rows), dtype=bool)
    out = [left_out(rows, np.empty(0, dtype=np.int64), "over_quota", pl.Series([], dtype=pl.String), filtered=True)]
    for family, quota in config.quotas.items():
        members = np.flatnonzero((rows["family"] == family.value).to_numpy())
        source = rows["source"].gather(members).cast(pl.String)
        shares = config.shares.get(family, {})
        pools = {name: np.flatnonzero((source == name).to_numpy()) for name in shares}
        taken = share_quota(quota, {name: len(pool) for name, pool in pools.items()}, shares)
        rest = np.ones(len(members), dtype=bool)
        for pool in pools.values():
            rest[pool] = False
        whole = f"the quota of {family.value} is {quota}"
        limits = [(pools[name], most, f"{whole}, {most} of {name}") for name, most in taken.items()]
        limits.append((np.flatnonzero(rest), quota - sum(taken.values()), whole))
        keys = fractions(rows["id"].gather(members), "quota", config.seed)
        for pool, most, why in limits:
            over = np.sort(members[pool[np.argsort(keys[pool], kind="stable")[most:]]])
            kept[over] = False
            out.append(left_out(rows, over, "over_quota", pl.Series([why]).new_from_index(0, len(over)), filtered=True))
    return kept, pl.concat(out)


def share_quota(quota: int, there: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """How many samples each source gives to a quota by its share; what one does not have goes to the others."""
    taken: dict[str, int] = {}
    left, open_ = quota, sorted(shares)
    while open_:
        whole = sum(shares[source] for source in open_)
        small = [source for source in open_ if there[source] <= left * shares[source] / whole]
        if not small:
            break
        taken |= {source: there[source] for source in small}
        left -= sum(there[source] for source in small)
        open_ = [source for source in open_ if source not in taken]
    ends = 0.0
    whole = sum(shares[source] for source in open_)
    for source in open_:  # rounded at the ends, so that the parts make up the whole
        begin, ends = ends, ends + shares[source]
        taken[source] = round(left * ends / whole) - round(left * begin / whole)
    return taken


def left_out(
    rows: pl.DataFrame, places: NDArray[np.int64], code: str, message: pl.Series, *, filtered: bool = False
) -> pl.DataFrame:
    """The rows at these places with the reason why they are not written."""
    return pl.DataFrame({
        "order": rows["order"].gather(places), "code": pl.repeat(code, len(places), eager=True),
        "message": message, "filtered": pl.repeat(filtered, len(places), eager=True),
    })  # fmt: skip


def fractions(ids: pl.Series, word: str, seed: int) -> NDArray[np.float64]:
    """`hash_fraction(word, seed, id)` of each id."""

    def values() -> Iterator[float]:
        for start in range(0, len(ids), _SLICE):
            yield from (hash_fraction(word, seed, name) for name in ids.slice(start, _SLICE).to_list())

    return np.fromiter(values(), dtype=np.float64, count=len(ids))
