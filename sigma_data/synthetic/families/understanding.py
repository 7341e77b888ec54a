"""Understanding: questions about an image, or about words alone, whose answers are known.

A conversation has one to four questions. Their kinds: `count` (how many objects), `colour` (what colour), `side` (left
or right of), `nearer` (which of two stands in front of the other), `odd` (which is the odd one out), and `text` (a
question without an image).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sigma_data.synthetic.families.crowds import Crowd, crowd, odd_one, plain
from sigma_data.synthetic.phrases import article
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Scene, Thing
from sigma_data.synthetic.shapes import OBJECTS

KINDS = ("count", "colour", "side", "nearer", "odd", "text")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_APART = 0.12
"""Sides of the image that two centres must be apart, left to right, for a question about sides."""
_MOST = 4
"""Questions of a conversation."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; `kind` is one of `KINDS`."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Questions about a scene, None for those about words alone. `kind` says which sort of scene it is."""

    kind: str
    scene: Scene | None
    exchanges: tuple[Exchange, ...]


def conversation(rng: KeyedRng) -> Conversation:
    """Questions about a crowd (seven of ten), about an odd one out (two), or about words alone (one)."""
    which = rng.below(10)
    if which == 0:
        return Conversation("text", None, tuple(_words(rng) for _ in range(1 + rng.below(2))))
    if which < 3:
        seen = odd_one(rng)
        made = [_odd(rng, seen)] + [_count(rng, seen)] * rng.below(2)
        return Conversation("odd", seen.scene, tuple(rng.some(made, len(made))))
    seen = crowd(rng)
    makers: list[Callable[[KeyedRng, Crowd], Exchange | None]] = [_count, _colour, _side, _nearer]
    asked = [found for maker in rng.some(makers, len(makers)) if (found := maker(rng, seen)) is not None]
    return Conversation("crowd", seen.scene, tuple(asked[: 1 + rng.below(_MOST)]))


def _count(rng: KeyedRng, seen: Crowd) -> Exchange:
    question = rng.pick(("how many objects are there?", "how many objects can be seen?", "count the objects."))
    return Exchange("count", question, NUMBERS[len(seen.scene.things)])


def _colour(rng: KeyedRng, seen: Crowd) -> Exchange | None:
    things = [one for one in seen.scene.things if plain(one)]
    if not things:
        return None
    one = rng.pick(things)
    question = rng.pick(("what colour is the {}?", "which colour does the {} have?")).format(one.noun)
    return Exchange("colour", question, one.colour.name)


def _side(rng: KeyedRng, seen: Crowd) -> Exchange | None:
    things = seen.scene.things
    pairs = [(one, other) for one in things for other in things if abs(one.x - other.x) > _APART]
    if not pairs:
        return None
    one, other = rng.pick(pairs)
    question = f"is the {one.noun} to the left or to the right of the {other.noun}?"
    return Exchange("side", question, "left" if one.x < other.x else "right")


def _nearer(rng: KeyedRng, seen: Crowd) -> Exchange | None:
    if seen.front is None or seen.behind is None:
        return None
    front, behind = seen.scene.things[seen.front], seen.scene.things[seen.behind]
    first, second = rng.some((front.noun, behind.noun), 2)
    question = rng.pick(("which is nearer, the {} or the {}?", "which is in front, the {} or the {}?"))
    return Exchange("nearer", question.format(first, second), f"the {front.noun}")


def _odd(rng: KeyedRng, seen: Crowd) -> Exchange:
    assert seen.front is not None
    question = rng.pick(("which object is the odd one out?", "which object is not like the others?"))
    return Exchange("odd", question, f"the {called(seen.scene.things[seen.front])}")


def _words(rng: KeyedRng) -> Exchange:
    """A sum, or an order from left to right, told in words."""
    if rng.chance(0.5):
        first, second = 1 + rng.below(5), 1 + rng.below(5)
        one, other = rng.some(OBJECTS, 2)
        told = f"there {'is' if first == 1 else 'are'} {_some(first, one)} and {_some(second, other)}"
        return Exchange("text", f"{told}. how many objects are there?", NUMBERS[first + second])
    left, middle, right = rng.some(OBJECTS, 3)
    asked_of, beside = rng.some((left, right), 2)
    told = f"the {left} is to the left of the {middle}, and the {middle} is to the left of the {right}"
    asked = f"is the {asked_of} to the left or to the right of the {beside}?"
    return Exchange("text", f"{told}. {asked}", "left" if asked_of == left else "right")


def called(thing: Thing) -> str:
    """A thing by its colour and what it is."""
    return f"{thing.colour.name} {thing.noun}"


def _some(count: int, name: str) -> str:
    """A number of things in words."""
    return article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def plural(name: str) -> str:
    """The plural of a shape's name."""
    if name in ("fish", "cactus", "cross"):
        return {"fish": "fish", "cactus": "cacti", "cross": "crosses"}[name]
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def placed(rng: KeyedRng, exchanges: Sequence[Exchange], *, image: bool) -> tuple[str, ...]:
    """The questions as instructions; the first names the image, if any, in front, behind, or not at all."""
    questions = [_capital(one.question) for one in exchanges]
    if image:
        questions[0] = rng.pick(("<image_1> {}", "{} <image_1>", "{}")).format(questions[0])
    return tuple(questions)


def _capital(text: str) -> str:
    """Every sentence with its first letter large."""
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
