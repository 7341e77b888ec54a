"""Segmentation: an image, and its instance colour map (`sigma_data.synthetic.instances`)."""

from __future__ import annotations

from sigma_data.synthetic.casting import Draft, Reference
from sigma_data.synthetic.families.crowds import crowd
from sigma_data.synthetic.rng import KeyedRng

_PHRASES = (
    "segment every object in [scene]",
    "segment [scene]",
    "draw the instance segmentation of [scene]",
    "make an instance map of [scene]",
    "paint each object of [scene] in a colour of its own",
    "give every object in [scene] its own colour and leave the rest black",
    "show which pixels of [scene] belong to which object",
    "separate the objects in [scene] by colour",
    "turn [scene] into a map of its objects",
    "mark all objects in [scene]",
    "colour the objects in [scene] one by one",
    "create a segmentation map from [scene]",
)


def draft(rng: KeyedRng) -> Draft:
    """One reference, and its colour map as the target."""
    scene = crowd(rng).scene
    return Draft("instances", (Reference("scene", scene),), scene, rng.pick(_PHRASES), {}, target_map="instances")
