"""Samples that a plan leaves out by choice: those with images of a benchmark, and those above a quota."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl

from pipelines.build_dataset.config import BuildConfig
from sigma_data.images.fingerprint import SIGNATURE_BYTES, hash_fraction
from sigma_data.images.fingerprint_file import KnownImages


def drop_excluded(rows: pl.DataFrame, excluded: KnownImages) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Leave out the samples of which any image is one of these, exactly or nearly."""
    images = (
        rows.select(pl.int_range(pl.len()).alias("sample"), "images")
        .explode("images", empty_as_null=False)
        .unnest("images")
        .select("sample", "number", "sha256", "signature")
    )
    different = images.unique("sha256", keep="first", maintain_order=True)
    signatures = np.frombuffer(b"".join(different["signature"]), dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)
    match = excluded.match(different["sha256"].to_list(), signatures)
    places = np.flatnonzero(match >= 0).tolist()
    prints = [excluded.prints[match[place]] for place in places]
    found = pl.DataFrame(
        {
            "sha256": [different["sha256"][place] for place in places],
            "known": [
                f"{'the same as' if one.sha256 == different['sha256'][place] else 'nearly identical to'} "
                f"{one.name or one.sha256}"
                for one, place in zip(prints, places, strict=True)
            ],
        },
        schema={"sha256": pl.String, "known": pl.String},
    )
    first = images.join(found, on="sha256", how="inner", maintain_order="left").unique("sample", keep="first")
    first = first.select("sample", why=pl.format("image {} is {}, to be excluded", "number", "known"))
    marked = rows.with_row_index("sample").with_columns(pl.col("sample").cast(pl.Int64))
    marked = marked.join(first.cast({"sample": pl.Int64}), on="sample", how="left", maintain_order="left")
    hit = pl.col("why").is_not_null()
    dropped = rejected(marked.filter(hit), "benchmark_image", pl.col("why"), filtered=True)
    return marked.filter(~hit).drop("sample", "why"), dropped.drop("sample", "why")


def apply_quotas(rows: pl.DataFrame, config: BuildConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Keep the quota's number of samples a family (and a source's share), those with the lowest hash of their id."""
    if not config.quotas or rows.is_empty():
        return rows, rows.clear()
    named = {(family.value, source) for family, shares in config.shares.items() for source in shares}
    places = rows.select("family", "source").iter_rows()
    pools = [f"{family} {source if (family, source) in named else ''}" for family, source in places]
    have = Counter(pools)
    limits: list[tuple[str, int, str]] = []  # pool, its most samples, what is said of those beyond
    for family, quota in config.quotas.items():
        shares = config.shares.get(family, {})
        taken = share_quota(quota, {source: have[f"{family.value} {source}"] for source in shares}, shares)
        whole = f"the quota of {family.value} is {quota}"
        limits += [(f"{family.value} {name}", most, f"{whole}, {most} of {name}") for name, most in taken.items()]
        limits.append((f"{family.value} ", quota - sum(taken.values()), whole))
    told = pl.DataFrame(limits, schema={"pool": pl.String, "most": pl.Int64, "why": pl.String}, orient="row")
    random_key = [hash_fraction("quota", config.seed, name) for name in rows["id"]]
    # A frame of its own, not the rows with their images: these are copied but once.
    ranked = pl.DataFrame({"random_key": random_key, "pool": pools}).with_columns(
        pl.col("random_key").rank("ordinal").over("pool").alias("rank")
    )
    ranked = ranked.join(told, on="pool", how="left", maintain_order="left")
    marked = ranked.select("why", keep=pl.col("most").is_null() | (pl.col("rank") <= pl.col("most")))
    keep, why = marked["keep"], marked["why"]
    over = rows.filter(~keep).with_columns(why=why.filter(~keep))
    return rows.filter(keep), rejected(over, "over_quota", pl.col("why"), filtered=True).drop("why")


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


def rejected(rows: pl.DataFrame, code: str, message: pl.Expr, *, filtered: bool = False) -> pl.DataFrame:
    """The rows with the reason why they are not written."""
    return rows.with_columns(
        pl.lit(code).alias("code"),
        pl.lit([code]).alias("codes"),
        message.alias("message"),
        pl.lit(filtered).alias("filtered"),
    )
