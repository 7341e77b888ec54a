"""A source whose samples a test lists, for builds in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn, sample_id
from sigma_data.sources.base import Fragment, Reader, register

_LISTS: dict[str, Sequence[Sample | Rejection]] = {}


class Listed(Reader):
    """The samples that stand under the source's path."""

    def fragments(self) -> list[Fragment]:
        return [Fragment("list", rows=len(_LISTS[self.path]))]

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        yield from _LISTS[self.path]


register("listed", Listed)


def listed(name: str, records: Sequence[Sample | Rejection]) -> str:
    """The source string of these records, to be built with `workers=0`."""
    _LISTS[name] = list(records)
    return f"listed:{name}"


def sample(row: int, family: Family, images: Sequence[Image], turns: Sequence[Turn], **fields: object) -> Sample:
    """A sample with the id that a source would give it."""
    return Sample(
        id=sample_id("listed", "list", row),
        family=family,
        images=tuple(images),
        turns=tuple(turns),
        source=Source("listed", "list", row, str(fields.pop("license", "cc0-1.0"))),
        **fields,  # type: ignore[arg-type]
    )
