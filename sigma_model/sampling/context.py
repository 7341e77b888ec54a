"""What a model is shown before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigma_data.loading.batch import Item
from sigma_data.sequence.layout import Kind, Segment


@dataclass(frozen=True)
class Context:
    """What a model looks at before it answers: segments, the target's last, and what they show.

    `item` brings `latents` and `patches`; its own segments are not read.
    """

    segments: Sequence[Segment]
    item: Item

    @property
    def prefix(self) -> list[Segment]:
        """The segments before the answer; earlier answers in words belong to them, noised targets never."""
        before = self.segments[:-1] if self.segments and self.segments[-1].kind.loss else self.segments
        return [segment for segment in before if segment.kind is not Kind.TARGET]

    @property
    def answer(self) -> Segment:
        """The segment to be produced."""
        return self.segments[-1]

    @property
    def end(self) -> int:
        """The position of what follows the prefix."""
        prefix = self.prefix
        return prefix[-1].end if prefix else 0
