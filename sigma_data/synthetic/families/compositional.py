"""Compositional: subjects, places, light, style, clothing ... each from its own picture, in one new one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sigma_data.synthetic import casting, creatures, shapes
from sigma_data.synthetic.backdrops import backdrop
from sigma_data.synthetic.casting import LOW_SLOTS, SLOTS, Draft, Picture
from sigma_data.synthetic.dice import Dice, colour
from sigma_data.synthetic.phrases import LIGHTS, WEATHERS, loose, manner, noun, ref, scenery
from sigma_data.synthetic.scene import Emblem, Scene, Thing, Wear

MOST_REFERENCES = 4


@dataclass
class _Plan:
    """What has been decided so far: the target, its references, and the clauses of the text."""

    dice: Dice
    target: Scene
    references: list[Picture] = field(default_factory=list)
    clauses: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return MOST_REFERENCES - len(self.references)

    def add(self, role: str, scene: Scene, attribute: str) -> None:
        self.references.append(Picture(role, scene))
        self.sources[attribute] = role

    def change(self, **values: object) -> None:
        """Change the first thing of the target."""
        first, *rest = self.target.things
        self.target = replace(self.target, things=(replace(first, **values), *rest))  # type: ignore[arg-type]


def draft(dice: Dice) -> Draft:
    """One to four references and the picture that brings them together."""
    kind = dice.pick(("subject", "subject", "pair", "character", "character", "sign"))
    plan = _Plan(dice, Scene(casting.place(dice)))
    lead = {"subject": _subject, "pair": _pair, "character": _character, "sign": _sign}[kind](plan)
    where = _place(plan)
    for step in (_style, _light, _weather):
        if plan.room and dice.chance(0.24):
            step(plan)
    return Draft(kind, tuple(plan.references), plan.target, _text(plan, lead, where), plan.sources)


def _text(plan: _Plan, lead: str, where: str) -> str:
    dice = plan.dice
    verb = dice.pick(("place", "put", "show", "position", "create a picture of", "draw"))
    clauses = dice.some(plan.clauses, len(plan.clauses))
    if clauses and dice.chance(0.4):
        rest = ". ".join(clause[0].upper() + clause[1:] for clause in clauses)
        return f"{verb} {lead} {where}. {rest}"
    if clauses and dice.chance(0.3):
        return f"{clauses[0]}, {verb} {lead} {where}{''.join(', ' + clause for clause in clauses[1:])}"
    return f"{verb} {lead} {where}{''.join(', ' + clause for clause in clauses)}"


def _seat(thing: Thing, slot: str, size: float) -> Thing:
    x, y = SLOTS[slot]
    return replace(thing, x=x, y=y, size=size)


def _subject(plan: _Plan) -> str:
    dice = plan.dice
    slot = dice.pick(tuple(SLOTS))
    badge = dice.chance(0.25)
    item = casting.thing(dice, among=shapes.BROAD if badge else shapes.OBJECTS, textured=0.0 if badge else 0.3)
    shown = casting.portrait(dice, item, turned=not badge)
    plan.add("subject", shown, "subject")
    plan.target = replace(plan.target, things=(_seat(shown.things[0], slot, 0.2),))
    if badge:
        _icon(plan)
    elif dice.chance(0.3):
        _cloth(plan)
    return f"{_the(dice)}{ref(dice, 'subject', noun(dice, item), 'subject')} {slot}"


def _icon(plan: _Plan) -> None:
    dice = plan.dice
    mark = casting.emblem(dice, plan.target.things[0].colour)
    glyph = Thing(mark.icon, mark.colour, mark.colour)
    plan.add("icon", casting.portrait(dice, glyph), "icon")
    plan.change(emblem=Emblem(mark.icon, mark.colour))
    plan.clauses.append(f"with the {ref(dice, 'icon', dice.pick((mark.icon, 'icon', 'symbol')), 'icon')} printed on it")


def _cloth(plan: _Plan) -> None:
    dice = plan.dice
    base = colour(dice)
    cloth = casting.texture(dice, base)
    plan.add("texture", casting.swatch(dice, base, cloth), "texture")
    plan.change(colour=base, texture=cloth)
    plan.clauses.append(
        f"made of the {ref(dice, 'texture', dice.pick((cloth.kind + ' pattern', 'texture', 'material')), 'texture')}"
    )


def _pair(plan: _Plan) -> str:
    dice = plan.dice
    first, second = casting.cast(dice, 2)
    left, right = dice.pick((("on the left", "on the right"), ("on the right", "on the left")))
    words = []
    placed = []
    for role, item, slot in (("subject", first, left), ("second", second, right)):
        shown = casting.portrait(dice, item)
        placed.append(_seat(shown.things[0], slot, 0.19))
        plan.references.append(Picture(role, shown))
        token = "id" if item.character else "subject"
        words.append(f"{_the(dice)}{ref(dice, token, noun(dice, item), role)} {slot}")
        plan.sources["subject" if role == "subject" else "second subject"] = role
    plan.target = replace(plan.target, things=tuple(placed))
    return " and ".join(words)


def _character(plan: _Plan) -> str:
    dice = plan.dice
    slot = dice.pick(LOW_SLOTS)
    item = casting.creature(dice)
    shown = casting.portrait(dice, item)
    plan.add("id", shown, "id")
    plan.target = replace(plan.target, things=(replace(_seat(shown.things[0], slot, 0.25), y=0.62),))
    for step in dice.some((_clothes, _emotion, _pose), 1 + dice.below(2)):
        step(plan)
    return f"{_the(dice)}{ref(dice, 'id', noun(dice, item), 'id')} {slot}"


def _clothes(plan: _Plan) -> None:
    dice = plan.dice
    kind, main, trim = dice.pick(creatures.WEAR), colour(dice), colour(dice)
    plan.add("clothing", casting.portrait(dice, Thing(kind, main, trim)), "clothing")
    plan.change(wear=(Wear(kind, main),))
    name = dice.pick((f"{main.name} {kind}", kind, "accessory"))
    plan.clauses.append(f"wearing the {ref(dice, 'clothing', name, 'clothing')}")


def _emotion(plan: _Plan) -> None:
    dice, who = plan.dice, plan.target.things[0].character
    assert who is not None
    other = casting.creature(dice)
    assert other.character is not None
    feeling = dice.pick([emotion for emotion in creatures.EMOTIONS if emotion != who.emotion])
    model = replace(other, character=replace(other.character, emotion=feeling))
    plan.add("emotion", casting.portrait(dice, model), "emotion")
    plan.change(character=replace(who, emotion=feeling))
    name = dice.pick((f"{feeling} expression", "expression", "facial expression"))
    plan.clauses.append(f"with the {ref(dice, 'emotion', name, 'emotion')}")


def _pose(plan: _Plan) -> None:
    dice, who = plan.dice, plan.target.things[0].character
    assert who is not None
    other = casting.creature(dice)
    assert other.character is not None
    stance = dice.pick([pose for pose in creatures.POSES if pose != who.pose])
    model = replace(other, character=replace(other.character, pose=stance))
    plan.add("pose", casting.portrait(dice, model), "pose")
    plan.change(character=replace(who, pose=stance))
    plan.clauses.append(f"in the {ref(dice, 'pose', dice.pick((f'{stance} pose', 'pose', 'body pose')), 'pose')}")


def _sign(plan: _Plan) -> str:
    dice = plan.dice
    slot = dice.pick(LOW_SLOTS)
    board = casting.sign(dice, casting.word(dice))
    shown = casting.portrait(dice, Thing("word", board.accent, board.accent, word=board.word))
    plan.add("text", shown, "text")
    plan.target = replace(plan.target, things=(_seat(board, slot, 0.24),))
    word = dice.pick((f"word {board.word}", "lettering", "word"))
    return f"{dice.pick(('a', 'one'))} {board.colour.name} sign {slot} with the {ref(dice, 'text', word, 'text')} on it"


def _place(plan: _Plan) -> str:
    """Where it is: a place from a picture, a room's perspective, or a wall named in words."""
    dice = plan.dice
    if not plan.room or dice.chance(0.12):
        wall = colour(dice)
        plain = backdrop(dice, "plain")
        plan.target = replace(plan.target, backdrop=replace(plain, colours=(wall.rgb,)))
        return f"in front of a plain {wall.name} wall"
    if dice.chance(0.16):
        return _perspective(plan)
    drop = plan.target.backdrop
    extras = casting.spread(dice, casting.cast(dice, dice.below(3)))
    scene = Scene(drop, extras)
    name = scenery(dice, drop)
    # One picture under several tokens: its light or weather comes along with the place.
    also = ""
    if dice.chance(0.2):
        scene = replace(scene, lighting=casting.lighting(dice))
        also = f" under the same {ref(dice, 'lighting', LIGHTS[scene.lighting.kind], 'background')}"
        plan.sources["lighting"] = "background"
    elif dice.chance(0.2):
        scene = replace(scene, environment=casting.environment(dice))
        also = f" in the same {ref(dice, 'environment', WEATHERS[scene.environment.kind], 'background')}"
        plan.sources["environment"] = "background"
    plan.target = replace(plan.target, lighting=scene.lighting, environment=scene.environment)
    plan.add("background", scene, "background")
    if dice.chance(0.2):
        return f"{dice.pick(('in the', 'in front of the'))} {loose(dice, name, 'background')}{also}"
    joint = dice.pick(("in the", "in front of the", "against the"))
    name = dice.pick((name, name, "background", "scene"))
    return f"{joint} {ref(dice, 'background', name, 'background')}{also}"


def _perspective(plan: _Plan) -> str:
    dice = plan.dice
    here, model = backdrop(dice, "room"), backdrop(dice, "room")
    wall = colour(dice)
    here = replace(here, colours=(wall.rgb, *here.colours[1:]), vanish=model.vanish)
    plan.add("perspective", Scene(model, casting.spread(dice, casting.cast(dice, dice.below(2)))), "perspective")
    plan.target = replace(plan.target, backdrop=here)
    view = dice.pick(("perspective", "camera view", "vanishing point"))
    return f"in a room with {wall.name} walls, seen in the {ref(dice, 'perspective', view, 'perspective')}"


def _style(plan: _Plan) -> None:
    dice = plan.dice
    look = casting.style(dice)
    plan.add("style", replace(casting.busy(dice), style=look), "style")
    plan.target = replace(plan.target, style=look)
    plan.clauses.append(
        f"{dice.pick(('in the', 'rendered in the', 'drawn in the'))} {ref(dice, 'style', manner(dice, look), 'style')}"
    )


def _light(plan: _Plan) -> None:
    dice = plan.dice
    if plan.target.lighting.kind != "day":
        return
    shine = casting.lighting(dice)
    plan.add("lighting", replace(casting.busy(dice), lighting=shine), "lighting")
    plan.target = replace(plan.target, lighting=shine)
    plan.clauses.append(
        f"lit by the {ref(dice, 'lighting', dice.pick((LIGHTS[shine.kind], 'light', 'lighting')), 'lighting')}"
    )


def _weather(plan: _Plan) -> None:
    dice = plan.dice
    if plan.target.environment.kind != "clear":
        return
    air = casting.environment(dice)
    plan.add("environment", replace(casting.busy(dice), environment=air), "environment")
    plan.target = replace(plan.target, environment=air)
    plan.clauses.append(
        f"in the {ref(dice, 'environment', dice.pick((WEATHERS[air.kind], 'weather', 'atmosphere')), 'environment')}"
    )


def _the(dice: Dice) -> str:
    return dice.pick(("the ", "the ", ""))
