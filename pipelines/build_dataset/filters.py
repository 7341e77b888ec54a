"""Filters of whole samples, by license and by the size of their images: what they leave out is counted as filtered."""

from __future__ import annotations

from pydantic import Field, field_validator

from sigma_data.images.decode import ImageFault, open_image
from sigma_data.license import forbids_derivatives, matches_license, normalize_license, normalize_pattern
from sigma_data.sample import Rejection, Sample
from sigma_data.settings_base import StrictModel


class Licenses(StrictModel):
    """Licenses that a build takes. Spelling does not matter (CC BY 4.0 is cc-by-4.0); `*` stands for any text."""

    allow: tuple[str, ...] = ()
    """Only these, e.g. mit,apache-2.0,cc-by-*; empty: every license that nothing else refuses. Name `unknown` to take
    samples whose license is not known."""
    deny: tuple[str, ...] = ()
    """None of these, e.g. unknown,cc-by-nc*."""
    no_derivatives: bool = False
    """Take samples whose license forbids derivatives (cc-by-nd, cc-by-nc-nd), for a corpus that is not shared."""

    @field_validator("allow", "deny")
    @classmethod
    def _normal(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({normalize_pattern(pattern) for pattern in value}))

    def reason(self, license: str) -> tuple[str, str] | None:
        """(code, message) if samples of this license are filtered."""
        name = normalize_license(license)
        if self.allow and not matches_license(name, self.allow):
            return "license_refused", f"the license {name} is not one of those allowed ({', '.join(self.allow)})"
        if matches_license(name, self.deny):
            return "license_refused", f"the license {name} is denied"
        if forbids_derivatives(name) and not self.no_derivatives:
            allow = "for a corpus that you do not share, allow it with licenses.no_derivatives=true"
            return "no_derivatives", f"the license {name} forbids derivatives, such as a corpus made of it: {allow}"
        return None


class Filters(StrictModel):
    """Sizes of images that a build takes; all images of a sample must have them. By default none is filtered."""

    min_side: int | None = Field(None, ge=1)
    """Shortest side in pixels."""
    min_pixels: int | None = Field(None, ge=1)
    """Width x height."""
    max_aspect: float | None = Field(None, ge=1)
    """Longest side over shortest side."""

    def reason(self, width: int, height: int) -> tuple[str, str] | None:
        """(code, message) if an image of this size is filtered."""
        shortest, longest = sorted((width, height))
        if self.min_side is not None and shortest < self.min_side:
            return "small_side", f"{width} x {height}, the shortest side is to be {self.min_side:,} pixels or more"
        if self.min_pixels is not None and width * height < self.min_pixels:
            return "few_pixels", f"{width} x {height}, that is to be {self.min_pixels:,} pixels or more"
        if self.max_aspect is not None and longest > self.max_aspect * shortest:
            return "long_aspect", f"{width} x {height}, longer than {self.max_aspect:g} : 1"
        return None


def filter_license(sample: Sample, licenses: Licenses) -> Sample | Rejection:
    """The sample, or why its license is not taken."""
    reason = licenses.reason(sample.source.license)
    return sample if reason is None else filtered(sample, *reason)


def filter_size(sample: Sample, filters: Filters) -> Sample | Rejection:
    """The sample, or which of its images is not of the wanted size; a broken one is left to the checks."""
    if filters == Filters():
        return sample
    for image in sample.images:
        try:
            width, height = open_image(image.data).size
        except ImageFault:
            return sample
        if reason := filters.reason(width, height):
            return filtered(sample, reason[0], f"image {image.number} is {reason[1]}")
    return sample


def filtered(sample: Sample, code: str, message: str) -> Rejection:
    """A sample that is left out, though nothing is wrong with it."""
    source = sample.source
    return Rejection(
        source.name, source.location, source.row, code, message,
        filtered=True, family=sample.family, license=source.license,
    )  # fmt: skip
