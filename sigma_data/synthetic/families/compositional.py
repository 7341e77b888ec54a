"""Compositional: subjects, places, light, style, clothing ... each from its own image, in one new one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sigma_data.synthetic import casting, creatures, shapes
from sigma_data.synthetic.backdrops import backdrop
from sigma_data.synthetic.casting import LOW_SLOTS, SLOTS, Draft, Reference
from sigma_data.synthetic.colours import colour
from sigma_data.synthetic.phrases import LIGHTS, WEATHERS, loose, manner, noun, ref, scenery
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Emblem, Scene, Thing, Wear

MOST_REFERENCES = 4


@dataclass
class _Plan:
    """What has been decided so far: the target, its references, and the clauses of the text."""

    rng: KeyedRng
    target: Scene
    references: list[Reference] = field(default_factory=list)
    clauses: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return MOST_REFERENCES - len(self.references)

    def add(self, role: str, scene: Scene, attribute: str) -> None:
        self.references.append(Reference(role, scene))
        self.sources[attribute] = role

    def change(self, **values: object) -> None:
        """Change the first thing of the target."""
        first, *rest = self.target.things
        self.target = replace(self.target, things=(replace(first, **values), *rest))  # type: ignore[arg-type]


def draft(rng: KeyedRng) -> Draft:
    """One to four references and the image that brings them together."""
    kind = rng.pick(("subject", "subject", "pair", "character", "character", "sign"))
    plan = _Plan(rng, Scene(casting.place(rng)))
    lead = {"subject": _subject, "pair": _pair, "character": _character, "sign": _sign}[kind](plan)
    where = _place(plan)
    for step in (_style, _light, _weather):
        if plan.room and rng.chance(0.24):
            step(plan)
    return Draft(kind, tuple(plan.references), plan.target, _text(plan, lead, where), plan.sources)


def _text(plan: _Plan, lead: str, where: str) -> str:
    rng = plan.rng
    verb = rng.pick(("place", "put", "show", "position", "create a picture of", "draw"))
    clauses = rng.some(plan.clauses, len(plan.clauses))
    if clauses and rng.chance(0.4):
        rest = ". ".join(clause[0].upper() + clause[1:] for clause in clauses)
        return f"{verb} {lead} {where}. {rest}"
    if clauses and rng.chance(0.3):
        return f"{clauses[0]}, {verb} {lead} {where}{''.join(', ' + clause for clause in clauses[1:])}"
    return f"{verb} {lead} {where}{''.join(', ' + clause for clause in clauses)}"


def _seat(thing: Thing, slot: str, size: float) -> Thing:
    x, y = SLOTS[slot]
    return replace(thing, x=x, y=y, size=size)


def _subject(plan: _Plan) -> str:
    rng = plan.rng
    slot = rng.pick(tuple(SLOTS))
    badge = rng.chance(0.25)
    item = casting.thing(rng, among=shapes.BROAD if badge else shapes.OBJECTS, textured=0.0 if badge else 0.3)
    shown = casting.portrait(rng, item, turned=not badge)
    plan.add("subject", shown, "subject")
    plan.target = replace(plan.target, things=(_seat(shown.things[0], slot, 0.2),))
    if badge:
        _icon(plan)
    elif rng.chance(0.3):
        _cloth(plan)
    return f"{_the(rng)}{ref(rng, 'subject', noun(rng, item), 'subject')} {slot}"


def _icon(plan: _Plan) -> None:
    rng = plan.rng
    mark = casting.emblem(rng, plan.target.things[0].colour)
    glyph = Thing(mark.icon, mark.colour, mark.colour)
    plan.add("icon", casting.portrait(rng, glyph), "icon")
    plan.change(emblem=Emblem(mark.icon, mark.colour))
    plan.clauses.append(f"with the {ref(rng, 'icon', rng.pick((mark.icon, 'icon', 'symbol')), 'icon')} printed on it")


def _cloth(plan: _Plan) -> None:
    rng = plan.rng
    base = colour(rng)
    cloth = casting.texture(rng, base)
    plan.add("texture", casting.swatch(rng, base, cloth), "texture")
    plan.change(colour=base, texture=cloth)
    plan.clauses.append(
        f"made of the {ref(rng, 'texture', rng.pick((cloth.kind + ' pattern', 'texture', 'material')), 'texture')}"
    )


def _pair(plan: _Plan) -> str:
    rng = plan.rng
    first, second = casting.cast(rng, 2)
    left, right = rng.pick((("on the left", "on the right"), ("on the right", "on the left")))
    words = []
    placed = []
    for role, item, slot in (("subject", first, left), ("second", second, right)):
        shown = casting.portrait(rng, item)
        placed.append(_seat(shown.things[0], slot, 0.19))
        plan.references.append(Reference(role, shown))
        token = "id" if item.character else "subject"
        words.append(f"{_the(rng)}{ref(rng, token, noun(rng, item), role)} {slot}")
        plan.sources["subject" if role == "subject" else "second subject"] = role
    plan.target = replace(plan.target, things=tuple(placed))
    return " and ".join(words)


def _character(plan: _Plan) -> str:
    rng = plan.rng
    slot = rng.pick(LOW_SLOTS)
    item = casting.creature(rng)
    shown = casting.portrait(rng, item)
    plan.add("id", shown, "id")
    plan.target = replace(plan.target, things=(replace(_seat(shown.things[0], slot, 0.25), y=0.62),))
    for step in rng.some((_clothes, _emotion, _pose), 1 + rng.below(2)):
        step(plan)
    return f"{_the(rng)}{ref(rng, 'id', noun(rng, item), 'id')} {slot}"


def _clothes(plan: _Plan) -> None:
    rng = plan.rng
    kind, main, trim = rng.pick(creatures.WEAR), colour(rng), colour(rng)
    plan.add("clothing", casting.portrait(rng, Thing(kind, main, trim)), "clothing")
    plan.change(wear=(Wear(kind, main),))
    name = rng.pick((f"{main.name} {kind}", kind, "accessory"))
    plan.clauses.append(f"wearing the {ref(rng, 'clothing', name, 'clothing')}")


def _emotion(plan: _Plan) -> None:
    rng, who = plan.rng, plan.target.things[0].character
    assert who is not None
    other = casting.creature(rng)
    assert other.character is not None
    feeling = rng.pick([emotion for emotion in creatures.EMOTIONS if emotion != who.emotion])
    model = replace(other, character=replace(other.character, emotion=feeling))
    plan.add("emotion", casting.portrait(rng, model), "emotion")
    plan.change(character=replace(who, emotion=feeling))
    name = rng.pick((f"{feeling} expression", "expression", "facial expression"))
    plan.clauses.append(f"with the {ref(rng, 'emotion', name, 'emotion')}")


def _pose(plan: _Plan) -> None:
    rng, who = plan.rng, plan.target.things[0].character
    assert who is not None
    other = casting.creature(rng)
    assert other.character is not None
    stance = rng.pick([pose for pose in creatures.POSES if pose != who.pose])
    model = replace(other, character=replace(other.character, pose=stance))
    plan.add("pose", casting.portrait(rng, model), "pose")
    plan.change(character=replace(who, pose=stance))
    plan.clauses.append(f"in the {ref(rng, 'pose', rng.pick((f'{stance} pose', 'pose', 'body pose')), 'pose')}")


def _sign(plan: _Plan) -> str:
    rng = plan.rng
    slot = rng.pick(LOW_SLOTS)
    board = casting.sign(rng, casting.word(rng))
    shown = casting.portrait(rng, Thing("word", board.accent, board.accent, word=board.word))
    plan.add("text", shown, "text")
    plan.target = replace(plan.target, things=(_seat(board, slot, 0.24),))
    word = rng.pick((f"word {board.word}", "lettering", "word"))
    return f"{rng.pick(('a', 'one'))} {board.colour.name} sign {slot} with the {ref(rng, 'text', word, 'text')} on it"


def _place(plan: _Plan) -> str:
    """Where it is: a place from an image, a room's perspective, or a wall named in words."""
    rng = plan.rng
    if not plan.room or rng.chance(0.12):
        wall = colour(rng)
        plain = backdrop(rng, "plain")
        plan.target = replace(plan.target, backdrop=replace(plain, colours=(wall.rgb,)))
        return f"in front of a plain {wall.name} wall"
    if rng.chance(0.16):
        return _perspective(plan)
    drop = plan.target.backdrop
    extras = casting.spread(rng, casting.cast(rng, rng.below(3)))
    scene = Scene(drop, extras)
    name = scenery(rng, drop)
    # One image under several tokens: its light or weather comes along with the place.
    also = ""
    if rng.chance(0.2):
        scene = replace(scene, lighting=casting.lighting(rng))
        also = f" under the same {ref(rng, 'lighting', LIGHTS[scene.lighting.kind], 'background')}"
        plan.sources["lighting"] = "background"
    elif rng.chance(0.2):
        scene = replace(scene, environment=casting.environment(rng))
        also = f" in the same {ref(rng, 'environment', WEATHERS[scene.environment.kind], 'background')}"
        plan.sources["environment"] = "background"
    plan.target = replace(plan.target, lighting=scene.lighting, environment=scene.environment)
    plan.add("background", scene, "background")
    if rng.chance(0.2):
        return f"{rng.pick(('in the', 'in front of the'))} {loose(rng, name, 'background')}{also}"
    joint = rng.pick(("in the", "in front of the", "against the"))
    name = rng.pick((name, name, "background", "scene"))
    return f"{joint} {ref(rng, 'background', name, 'background')}{also}"


def _perspective(plan: _Plan) -> str:
    rng = plan.rng
    here, model = backdrop(rng, "room"), backdrop(rng, "room")
    wall = colour(rng)
    here = replace(here, colours=(wall.rgb, *here.colours[1:]), vanish=model.vanish)
    plan.add("perspective", Scene(model, casting.spread(rng, casting.cast(rng, rng.below(2)))), "perspective")
    plan.target = replace(plan.target, backdrop=here)
    view = rng.pick(("perspective", "camera view", "vanishing point"))
    return f"in a room with {wall.name} walls, seen in the {ref(rng, 'perspective', view, 'perspective')}"


def _style(plan: _Plan) -> None:
    rng = plan.rng
    look = casting.style(rng)
    plan.add("style", replace(casting.busy(rng), style=look), "style")
    plan.target = replace(plan.target, style=look)
    plan.clauses.append(
        f"{rng.pick(('in the', 'rendered in the', 'drawn in the'))} {ref(rng, 'style', manner(rng, look), 'style')}"
    )


def _light(plan: _Plan) -> None:
    rng = plan.rng
    if plan.target.lighting.kind != "day":
        return
    shine = casting.lighting(rng)
    plan.add("lighting", replace(casting.busy(rng), lighting=shine), "lighting")
    plan.target = replace(plan.target, lighting=shine)
    plan.clauses.append(
        f"lit by the {ref(rng, 'lighting', rng.pick((LIGHTS[shine.kind], 'light', 'lighting')), 'lighting')}"
    )


def _weather(plan: _Plan) -> None:
    rng = plan.rng
    if plan.target.environment.kind != "clear":
        return
    air = casting.environment(rng)
    plan.add("environment", replace(casting.busy(rng), environment=air), "environment")
    plan.target = replace(plan.target, environment=air)
    plan.clauses.append(
        f"in the {ref(rng, 'environment', rng.pick((WEATHERS[air.kind], 'weather', 'atmosphere')), 'environment')}"
    )


def _the(rng: KeyedRng) -> str:
    return rng.pick(("the ", "the ", ""))
