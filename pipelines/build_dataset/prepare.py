"""What happens to a sample between its source and the checks: a short chain in a fixed order.

License, size, condition. The scan runs the whole chain. The write pass has the texts from the scan and needs the
images again, so it runs the steps that decide which samples there are and which images they have (`images_only`).
Whatever a step does, it must do a second time: nothing but the sample and the settings may decide it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.build_dataset.conditions import Conditions, add_condition, is_text_to_image
from pipelines.build_dataset.filters import Filters, Licenses, filter_license, filter_size, filtered
from sigma_data.corpus.check_limits import Limits
from sigma_data.images.reader_differences import Store
from sigma_data.sample import Rejection, Sample
from sigma_data.settings_base import StrictModel


class PrepareSettings(StrictModel):
    """The settings of the chain: those of BuildConfig with the same names."""

    licenses: Licenses = Licenses()
    filters: Filters = Filters()
    conditions: Conditions = Conditions()
    max_side: int | None = None
    store: Store = "auto"
    limits: Limits = Limits()


def prepared(
    records: Iterable[Sample | Rejection],
    settings: PrepareSettings,
    *,
    images_only: bool = False,
    cache: Path | None = None,
) -> Iterator[Sample | Rejection]:
    """The records of a source after the chain; rejections of the source pass through.

    The folder `cache` keeps what a second run could compute otherwise (depth maps).
    """
    for record in records:
        if isinstance(record, Rejection):
            yield record
        else:
            yield from prepare(record, settings, images_only=images_only, cache=cache)


def prepare(
    sample: Sample, settings: PrepareSettings, *, images_only: bool = False, cache: Path | None = None
) -> list[Sample | Rejection]:
    """What becomes of one sample: itself, changed, or filtered with the reason.

    With `images_only` the results are as many, with the same ids and images, but their texts may be unchanged.
    """
    found = filter_license(sample, settings.licenses)
    if isinstance(found, Sample):
        found = filter_size(found, settings.filters)
    if isinstance(found, Sample):
        found = add_condition(
            found,
            settings.conditions,
            max_side=settings.max_side,
            store=settings.store,
            max_pixels=settings.limits.max_pixels,
            cache=cache,
        )
    if isinstance(found, Sample):
        found = _filter_text_to_image(found)
    return [found]


def _filter_text_to_image(sample: Sample) -> Sample | Rejection:
    """A caption and its image teach nothing of a layout, unless they have got a condition."""
    if not is_text_to_image(sample):
        return sample
    return filtered(sample, "no_reference", "a caption and its image, without a reference: conditions.shares makes one")
