"""Relations made of pairs: references A, A', B and target B', from the pairs of one group.

The pairs of a group stand in a ring, in the order of a hash of seed and row; each is the query B -> B' of one sample,
with the pair after it as demonstration A -> A', so that each is used once as either. Pairs that share an image are no
relation. Pairs that cannot be read are left out of the ring. A group is one fragment, whatever its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sigma_data.sample import Family
from sigma_data.sources.base import Fragment
from sigma_data.sources.field_map.filters import Filtered
from sigma_data.sources.field_map.images import Scope
from sigma_data.sources.field_map.outcomes import Outcome
from sigma_data.sources.field_map.schema import Quadruples
from sigma_data.sources.field_map.shapes import Draft, DraftImage

_PREFIX = "group "


@dataclass(frozen=True)
class Pair:
    """A good pair of a group: where it stands, its draft, what tells each of its images from others."""

    location: str
    row: int
    draft: Draft
    scope: Scope
    digests: tuple[bytes, ...]


def group_fragment(fragments: Sequence[Fragment]) -> Fragment:
    """One fragment of all those of a group."""
    first = fragments[0]
    part = _PREFIX + json.dumps([[one.location, one.part, one.stamp, one.rows] for one in fragments])
    stamp = first.stamp if len({one.location for one in fragments}) == 1 else ""
    return Fragment(first.location, part, stamp, sum(one.rows or 0 for one in fragments))


def fragments_of(group: Fragment) -> list[Fragment]:
    """The fragments of a group."""
    if not group.part.startswith(_PREFIX):
        return []
    return [Fragment(*values) for values in json.loads(group.part[len(_PREFIX) :])]


def ring(pairs: Sequence[Pair], spec: Quadruples) -> Iterator[tuple[Pair, Pair | None]]:
    """Every pair with the one that demonstrates it, in the order given; None where the group has no other."""

    def place(pair: Pair) -> bytes:
        return hashlib.sha256(f"{spec.seed}\x1f{pair.location}\x1f{pair.row}".encode()).digest()

    order = sorted(pairs, key=place)
    number = {id(pair): index for index, pair in enumerate(order)}
    for pair in pairs:
        start = number[id(pair)]
        others = (order[(start + step) % len(order)] for step in range(1, len(order)))
        yield pair, next((other for other in others if set(pair.digests).isdisjoint(other.digests)), None)


def quadruple(pair: Pair, demonstration: Pair | None) -> Outcome:
    """The outcome of a pair as query."""
    if demonstration is None:
        fault = Filtered("single_pair", "no other pair of its group can be read, and a relation needs two")
        return Outcome(pair.row, fault=fault, family=Family.RELATION)
    turn = demonstration.draft.turns[0]
    shown: list[DraftImage] = [*demonstration.draft.references, *([turn.target] if turn.target else [])]
    there = [replace(image, scope=demonstration.scope) for image in shown]
    return Outcome(pair.row, replace(pair.draft, references=(*there, *pair.draft.references), suffix=""))
