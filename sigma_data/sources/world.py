"""`world:COUNT`: synthetic samples drawn from a seed, with exact ground truth (`sigma_data.synthetic`).

E.g. `world:3000?size=256&seed=0&families=editing,layout`, or with shares `families=segmentation:2,understanding:1`.
Sample i depends on the options and on i alone, so a longer corpus begins with the shorter one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES
from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn, sample_id
from sigma_data.sources.base import Fragment, Reader, ReaderOptions, Surveyed

FAMILIES: tuple[Family, ...] = (
    Family.COMPOSITIONAL, Family.SELECTIVE, Family.STYLIZATION, Family.RELATION, Family.EDITING, Family.LAYOUT,
)  # fmt: skip
"""The families that are drawn unless others are asked for."""

_KNOWN: tuple[Family, ...] = (*FAMILIES, Family.SEGMENTATION, Family.UNDERSTANDING)
_MOST_SHARES = 100

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
    """Families in alternation, separated by commas, each with its share (`segmentation:2,understanding:1`), by default
    1; any of the default, and segmentation and understanding. Their order does not matter."""
    format: Literal["png", "jpg", "webp"] = "png"
    """Encoding of the images; only PNG is lossless."""
    attributes: bool = True
    """Whether instructions have attribute tokens. Samples have the same ids and splits without them."""

    @field_validator("families")
    @classmethod
    def _known(cls, value: str) -> str:
        shares: dict[str, int] = {}
        for entry in value.split(","):
            name, colon, share = (word.strip() for word in entry.partition(":"))
            if name not in _KNOWN:
                raise ValueError(f"{name!r} is not one of {', '.join(_KNOWN)}")
            if name in shares:
                raise ValueError("a family is named twice")
            if colon and not (share.isascii() and share.isdigit() and len(share) <= 3 and int(share)):
                raise ValueError(f"the share of {name} is not a whole number of 1 or more: {share!r}")
            shares[name] = int(share) if colon else 1
        divisor = math.gcd(*shares.values())
        shares = {family.value: shares[family] // divisor for family in _KNOWN if family in shares}
        if sum(shares.values()) > _MOST_SHARES:
            raise ValueError(f"the shares sum to {sum(shares.values())}, and {_MOST_SHARES} are the most")
        return ",".join(name if share == 1 else f"{name}:{share}" for name, share in shares.items())


def turns_of_families(shares: Mapping[Family, int]) -> tuple[Family, ...]:
    """Families in the order in which samples take turns, each as often as its share, spread evenly.

    The next is always the one that is furthest behind its share, of several the first: equal shares alternate.
    """
    total, taken = sum(shares.values()), dict.fromkeys(shares, 0)
    order = []
    for place in range(1, total + 1):
        family = max(shares, key=lambda one: shares[one] * place - taken[one] * total)
        taken[family] += 1
        order.append(family)
    return tuple(order)


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
        named = (entry.partition(":") for entry in options.families.split(","))
        self.families = turns_of_families({Family(name): int(share or 1) for name, _, share in named})
        families = options.families.replace(",", "+")
        # Everything that a sample's images depend on except its index: never the count or the fragment.
        self._drawn = f"seed={options.seed},size={options.size},format={options.format},families={families}"
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
        first, *later = drawn.responses or (None,)
        target = None if drawn.responses else len(drawn.images)
        return Sample(
            id=sample_id(self.name, self._drawn, index),
            family=family,
            images=tuple(Image(number, data) for number, data in enumerate(drawn.images, start=1)),
            turns=(
                Turn(instruction, target=target, response=first),
                *(Turn(asked, response=said) for asked, said in zip(drawn.later, later, strict=True)),
            ),
            source=Source(self.name, self.location, index, self.options.license),
            truth=drawn.truth,
        )


READER = WorldReader
