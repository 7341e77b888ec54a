"""Relation: A became A'; the same change applied to B."""

from __future__ import annotations

from dataclasses import replace

from sigma_data.synthetic import casting
from sigma_data.synthetic.casting import Draft, Reference
from sigma_data.synthetic.families.changes import KINDS, subject
from sigma_data.synthetic.phrases import noun
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Scene

_TEMPLATES = (
    "transform the {thing}[before] as in the transformation from [a] to {what}[after]",
    "as the transformation from [a] to {what}[after], transform the {thing}[before]",
    "transform the {thing}[before] the way [a] was turned into the {what}[after]",
    "[a] became [after]. Make the same change of {what} to the {thing}[before]",
    "look at how [a] turns into {what}[after] and do the same to the {thing}[before]",
    "apply the change between [a] and {what}[after] to the {thing}[before]",
    "take the {thing}[before] and change it as [a] changed to {what}[after]",
)


def draft(rng: KeyedRng) -> Draft:
    """Three references, in random order, and B'."""
    kind = rng.pick(tuple(KINDS))
    rule = KINDS[kind]
    one = subject(rng, rule)
    two = subject(rng, rule, avoid=(one.colour.name,))
    change = rule.make(rng, (one, two))
    before = [Scene(casting.place(rng), casting.spread(rng, (item,), low=0.23, high=0.28)) for item in (one, two)]
    if kind == "background":
        # The new place must be new to both.
        new = change.apply(before[0]).backdrop.kind
        before = [replace(scene, backdrop=casting.place(rng, avoid=(new,))) for scene in before]
    if kind not in ("style", "frame", "background") and rng.chance(0.3):
        before = [replace(scene, backdrop=casting.ground(rng, scene.things[0].colour)) for scene in before]
    after, target = (change.apply(scene) for scene in before)
    token = "id" if two.character else "subject"
    words = f"<{token}>{noun(rng, two)}{rng.pick(('', ' in ', ' from '))}"
    example = f"<{change.token}>{rng.pick((change.words, change.words, f'{change.token} reference'))}"
    text = rng.pick(_TEMPLATES).format(thing=words, what=example)
    if rng.chance(0.15):
        text = text.replace("<" + token + ">", "", 1)
    references = (Reference("a", before[0]), Reference("after", after), Reference("before", before[1]))
    sources = {token: "before", change.token: "after"}
    return Draft(kind, references, target, text, sources, {"kind": kind, "value": change.value, "object": 0})
