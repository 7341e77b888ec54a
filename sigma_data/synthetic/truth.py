"""The ground truth of a scene as plain JSON values."""

from __future__ import annotations

from typing import Any

from sigma_data.synthetic.colours import Colour
from sigma_data.synthetic.light import lit
from sigma_data.synthetic.scene import Scene, Texture
from sigma_data.synthetic.shapes import anchor, box


def describe(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values; each object with its exact box and its colour as seen."""
    things = []
    for thing in scene.things:
        x, y = anchor(thing)
        entry: dict[str, Any] = {
            "shape": thing.shape,
            "name": thing.name,
            "colour": _colour(thing.colour),
            "accent": _colour(thing.accent),
            "texture": _texture(thing.texture),
            "box": box(thing),
            "centre": [thing.x, thing.y],
            "size": thing.size,
            "rotation": thing.rotation,
            "mirror": thing.mirror,
            "anchor": [x, y],
            "seen": list(lit(scene.lighting, thing.colour.rgb, x, y)),
        }
        if thing.character:
            entry["character"] = dict(vars(thing.character))
        if thing.wear:
            entry["wear"] = [{"kind": item.kind, "colour": _colour(item.colour)} for item in thing.wear]
        if thing.emblem:
            entry["icon"] = {"kind": thing.emblem.icon, "colour": _colour(thing.emblem.colour)}
        if thing.word:
            entry["text"] = thing.word
        things.append(entry)
    backdrop, style = scene.backdrop, scene.style
    return {
        "background": {
            "kind": backdrop.kind,
            "colours": [list(rgb) for rgb in backdrop.colours],
            "horizon": backdrop.horizon,
            "perspective": list(backdrop.vanish) if backdrop.kind == "room" else None,
            "texture": _texture(backdrop.texture),
        },
        "environment": scene.environment.kind,
        "frame": _colour(scene.frame) if scene.frame else None,
        "lighting": {"kind": scene.lighting.kind, "tint": list(scene.lighting.tint)},
        "objects": things,
        "style": {"kind": style.kind, "inks": [list(ink) for ink in style.inks], "pitch": style.pitch},
    }


def _colour(colour: Colour) -> dict[str, Any]:
    return {"name": colour.name, "rgb": list(colour.rgb)}


def _texture(texture: Texture) -> dict[str, Any]:
    value: dict[str, Any] = {"kind": texture.kind}
    if texture.colour:
        value |= {"colour": _colour(texture.colour), "scale": texture.scale, "angle": texture.angle}
    return value
