"""Changes of a scene: what relation shows by example and editing asks for in words.

A change turns a scene into another by touching its first thing (or the whole image); its words
and its attribute token say what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sigma_data.synthetic import casting, creatures, shapes
from sigma_data.synthetic.colours import colour
from sigma_data.synthetic.phrases import LIGHTS, WEATHERS, article, manner, scenery
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import ADJECTIVES, Scene, Texture, Thing
from sigma_data.synthetic.styles import NAMES as STYLES
from sigma_data.synthetic.textures import KINDS as TEXTURES


@dataclass(frozen=True)
class Change:
    """`apply` makes the change; `token` is its attribute, `words` what it brings, `order` an imperative.

    `order` has `{thing}` where the changed thing is named and `{image}` where the image is.
    """

    kind: str
    token: str
    words: str
    order: str
    apply: Callable[[Scene], Scene]
    value: object


@dataclass(frozen=True)
class Kind:
    """A kind of change: which first things it can be shown on, and how one is drawn up for them."""

    make: Callable[[KeyedRng, tuple[Thing, ...]], Change]
    creature: bool | None = None
    shapes: tuple[str, ...] = shapes.OBJECTS


def subject(rng: KeyedRng, kind: Kind, *, avoid: tuple[str, ...] = ()) -> Thing:
    """A thing that the kind of change can be shown on, whose colour name is not in `avoid`."""
    if kind.creature or (kind.creature is None and rng.chance(0.3)):
        return casting.creature(rng, avoid=avoid)
    item = casting.thing(rng, among=kind.shapes, avoid=avoid, textured=0.15 if kind.creature is None else 0.0)
    return replace(item, mirror=False)


def first(scene: Scene, **values: object) -> Scene:
    """The scene with fields of its first thing replaced."""
    head, *rest = scene.things
    return replace(scene, things=(replace(head, **values), *rest))  # type: ignore[arg-type]


def _recolour(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    paint = colour(rng, avoid=[name for item in things for name in _colours(item)])
    order = rng.pick(("change the colour of {thing} to %s", "make {thing} %s", "paint {thing} %s")) % paint.name
    return Change(
        "recolour", "texture", f"{paint.name} colour", order, lambda scene: first(scene, colour=paint), paint.name
    )


def _retexture(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    taken = {item.texture.kind for item in things}
    kinds = [kind for kind in TEXTURES if kind not in taken]
    cloth = casting.texture(rng, things[0].colour, kinds=kinds)
    avoid = [name for item in things for name in _colours(item)]
    cloth = Texture(cloth.kind, colour(rng, avoid=avoid), cloth.scale, cloth.angle)
    assert cloth.colour is not None
    order = f"give {{thing}} a {ADJECTIVES[cloth.kind]} pattern with {cloth.colour.name}"
    return Change(
        "retexture",
        "texture",
        f"{ADJECTIVES[cloth.kind]} pattern",
        order,
        lambda scene: first(scene, texture=cloth),
        cloth.kind,
    )


def _rotate(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    angle = rng.pick((45, 90, 135, 180, -45, -90))
    words = f"{abs(angle)} degrees {'clockwise' if angle > 0 else 'counterclockwise'}"
    return Change(
        "rotate", "pose", "orientation", f"rotate {{thing}} {words}", lambda scene: first(scene, rotation=angle), angle
    )


def _mirror(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    order = rng.pick(("mirror {thing} from left to right", "flip {thing} horizontally"))
    return Change(
        "mirror", "pose", "orientation", order, lambda scene: first(scene, mirror=not scene.things[0].mirror), True
    )


def _resize(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    factor = rng.pick((0.5, 0.6, 0.7))
    order = f"shrink {{thing}} to {round(factor * 100)} percent of its size"
    return Change(
        "resize",
        "layout",
        "size",
        order,
        lambda scene: first(scene, size=round(scene.things[0].size * factor, 4)),
        factor,
    )


def _wear(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    item = casting.wear(rng)
    words = f"{item.colour.name} {item.kind}"
    order = rng.pick(("let {thing} wear %s", "put %s on {thing}")) % article(words)
    return Change("wear", "clothing", words, order, lambda scene: first(scene, wear=(item,)), words)


def _emotion(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    taken = [item.character.emotion for item in things if item.character]
    mood = rng.pick([emotion for emotion in creatures.EMOTIONS if emotion not in taken])
    order = rng.pick(("make {thing} look %s", "change the mood of {thing} to %s")) % mood

    def apply(scene: Scene) -> Scene:
        who = scene.things[0].character
        assert who is not None
        return first(scene, character=replace(who, emotion=mood))

    return Change("emotion", "emotion", f"{mood} expression", order, apply, mood)


def _pose(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    taken = [item.character.pose for item in things if item.character]
    stance = rng.pick([pose for pose in creatures.POSES if pose not in taken])

    def apply(scene: Scene) -> Scene:
        who = scene.things[0].character
        assert who is not None
        return first(scene, character=replace(who, pose=stance))

    return Change("pose", "pose", f"{stance} pose", f"change the pose of {{thing}} to {stance}", apply, stance)


def _icon(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    # One colour must show on every thing of the example and of the question.
    mark = casting.emblem(rng, max((item.colour for item in things), key=lambda tone: abs(sum(tone.rgb) - 430)))
    order = f"print {article(f'{mark.colour.name} {mark.icon}')} on {{thing}}"
    return Change("icon", "icon", f"{mark.icon} icon", order, lambda scene: first(scene, emblem=mark), mark.icon)


def _style(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    look = casting.style(rng)
    words = STYLES[look.kind][0]
    return Change(
        "style",
        "style",
        manner(rng, look),
        f"turn {{image}} into {article(words)}",
        lambda scene: replace(scene, style=look),
        look.kind,
    )


def _light(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    shine = casting.lighting(rng)
    words = LIGHTS[shine.kind]
    order = rng.pick(("relight {image} with %s", "show {image} under %s")) % words
    return Change("relight", "lighting", words, order, lambda scene: replace(scene, lighting=shine), shine.kind)


def _weather(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    air = casting.environment(rng)
    words = WEATHERS[air.kind]
    return Change(
        "weather",
        "environment",
        words,
        f"add {words} to {{image}}",
        lambda scene: replace(scene, environment=air),
        air.kind,
    )


def _background(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    drop = casting.place(rng)
    words = scenery(rng, drop)
    order = f"replace the background of {{image}} with {article(words)}"
    return Change("background", "background", words, order, lambda scene: replace(scene, backdrop=drop), drop.kind)


def _frame(rng: KeyedRng, things: tuple[Thing, ...]) -> Change:
    paint = colour(rng)
    order = f"put {article(paint.name)} frame around {{image}}"
    return Change(
        "frame", "layout", f"{paint.name} frame", order, lambda scene: replace(scene, frame=paint), paint.name
    )


def _colours(item: Thing) -> list[str]:
    names = [item.colour.name]
    return [*names, item.texture.colour.name] if item.texture.colour else names


KINDS: dict[str, Kind] = {
    "recolour": Kind(_recolour),
    "retexture": Kind(_retexture, creature=False),
    "rotate": Kind(_rotate, shapes=shapes.UPRIGHT),
    "mirror": Kind(_mirror, creature=False, shapes=shapes.LOPSIDED),
    "resize": Kind(_resize),
    "wear": Kind(_wear, creature=True),
    "emotion": Kind(_emotion, creature=True),
    "pose": Kind(_pose, creature=True),
    "icon": Kind(_icon, creature=False, shapes=shapes.BROAD),
    "style": Kind(_style),
    "relight": Kind(_light),
    "weather": Kind(_weather),
    "background": Kind(_background),
    "frame": Kind(_frame),
}
