"""`world:COUNT`: synthetic samples drawn from a seed, with exact ground truth (`sigma_data.synthetic`).

E.g. `world:3000?size=256&seed=0&families=editing,layout`. Sample i depends on the options and on i alone, so a longer
corpus begins with the shorter one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES
from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn, sample_id
from sigma_data.sources.base import Fragment, Reader, ReaderOptions, Surveyed

FAMILIES: tuple[Family, ...] = (
    Family.COMPOSITIONAL, Family.SELECTIVE, Family.STYLIZATION, Family.RELATION, Family.EDITING, Family.LAYOUT,
)  # fmt: skip

FRAGMENT_ROWS = 32
VERSION = 1
"""Increased whenever the same options draw other images, so that a build does not mix the two."""

_TOKEN = re.compile(rf"<(?:{'|'.join(ATTRIBUTES)})> ?")
"""An attribute token and the space after it, if any."""


class WorldOptions(ReaderOptions):
    """Options of the synthetic corpus."""

    license: str = "apache-2.0"
    size: int = Field(256, ge=64, le=1024)
    """Side of the square images in pixels."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Another seed is another corpus."""
    families: str = ",".join(FAMILIES)
    """Families in alternation, separated by commas; their order does not matter."""
    format: Literal["png", "jpg", "webp"] = "png"
    """Encoding of the images; only PNG is lossless."""
    attributes: bool = True
    """Whether instructions have attribute tokens. Samples have the same ids and splits without them."""

    @field_validator("families")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in FAMILIES:
                raise ValueError(f"{name!r} is not one of {', '.join(FAMILIES)}")
        if len(set(names)) != len(names):
            raise ValueError("a family is named twice")
        return ",".join(family for family in FAMILIES if family in names)


class WorldReader(Reader):
    """The samples 0 .. count - 1, families alternating."""

    options_type: ClassVar[type[ReaderOptions]] = WorldOptions
    injected = True

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        super().__init__(scheme, path, options)
        assert isinstance(options, WorldOptions)
        if not (path.isascii() and path.isdigit() and len(path) <= 12 and int(path)):
            raise ConfigError(f"source 'world:{path}': write how many samples to draw, e.g. world:3000")
        self.count = int(path)
        self.options = options
        self.families = [Family(name) for name in options.families.split(",")]
        # Everything that a sample's images depend on except its index: never the count or the fragment.
        self._drawn = (
            f"seed={options.seed},size={options.size},format={options.format},families={'+'.join(self.families)}"
        )
        self.location = self._drawn if options.attributes else f"{self._drawn},attributes=no"

    def fragments(self) -> list[Fragment]:
        """Fixed ranges of rows."""
        return [
            Fragment(self.location, part=f"{start}-{stop}", stamp=f"world-{VERSION}", rows=stop - start)
            for start in range(0, self.count, FRAGMENT_ROWS)
            for stop in [min(start + FRAGMENT_ROWS, self.count)]
        ]

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        """Draw the samples of the range `start-stop` in `fragment.part`."""
        start, _, stop = fragment.part.partition("-")
        for index in range(int(start), int(stop)):
            yield self.sample(index)

    def survey(self, fragment: Fragment | None = None) -> Iterator[Surveyed]:
        """Families alternate; nothing is drawn."""
        for one in self.fragments() if fragment is None else [fragment]:
            start, _, stop = one.part.partition("-")
            for index in range(int(start), int(stop)):
                yield Surveyed(self.families[index % len(self.families)], self.options.license)

    def sample(self, index: int) -> Sample:
        """The sample with this index."""
        # Imported here: listing the sources must not load the drawing code.
        from sigma_data.synthetic import draw_sample

        family = self.families[index % len(self.families)]
        drawn = draw_sample(
            seed=self.options.seed, size=self.options.size, format=self.options.format, family=family, index=index
        )
        instruction = drawn.instruction if self.options.attributes else _TOKEN.sub("", drawn.instruction)
        last = len(drawn.images)
        return Sample(
            id=sample_id(self.name, self._drawn, index),
            family=family,
            images=tuple(Image(number, data) for number, data in enumerate(drawn.images, start=1)),
            turns=(Turn(instruction, target=last),),
            source=Source(self.name, self.location, index, self.options.license),
            truth=drawn.truth,
        )


READER = WorldReader
