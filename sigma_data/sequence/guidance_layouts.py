"""The layouts that guidance compares with the complete one, and the token order of the release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sigma_data.sequence.layout import Kind, Segment


def without_text(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The layout for guidance towards the text: no instruction, everything else moved up.

    What the model has answered in words before stays: it is its own, not what it was told.
    """
    return _moved_up([replace(segment, attributes=()) for segment in segments if segment.kind is not Kind.TEXT])


def without_references(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The layout for guidance towards the references: no clean image, everything else moved up.

    Attribute tokens keep their groups, which name no image any more. Unlike an image dropped in
    training, one left out here leaves no gap in the positions: so the released models are sampled.
    """
    return _moved_up([segment for segment in segments if segment.kind not in (Kind.LATENT, Kind.PATCH)])


def text_first(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The layout of the released batch inference: all text, then all references, then the answer.

    Training interleaves; this order is for comparison with the release.
    """
    return _moved_up(sorted(segments, key=lambda segment: (segment.kind.loss, segment.kind.image)))


def _moved_up(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    position = 0
    moved = []
    for segment in segments:
        moved.append(replace(segment, position=position))
        position = moved[-1].end
    return tuple(moved)
