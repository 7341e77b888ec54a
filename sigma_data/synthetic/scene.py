"""The content of an image as data: a scene holds its backdrop, things, light, weather and style.

Coordinates are fractions of the image's side, x to the right and y down, so a scene has no size.
`sigma_data.synthetic.truth` turns a scene into the plain values of a sample's truth.
"""

from __future__ import annotations

from dataclasses import dataclass

from sigma_data.synthetic.colours import RGB, Colour


@dataclass(frozen=True)
class Texture:
    """A pattern of a second colour on the first; `scale` is a cell in units of what it covers."""

    kind: str = "plain"
    colour: Colour | None = None
    scale: float = 0.3
    angle: int = 0


@dataclass(frozen=True)
class Character:
    """Who a creature is (species, eyes, marks) and what it does (emotion, pose)."""

    species: str
    eyes: str
    marks: str
    emotion: str
    pose: str


@dataclass(frozen=True)
class Wear:
    """Something a creature wears."""

    kind: str
    colour: Colour


@dataclass(frozen=True)
class Emblem:
    """A flat icon on a thing's body."""

    icon: str
    colour: Colour


@dataclass(frozen=True)
class Thing:
    """One object: centre (x, y), `size` as the radius it is drawn in, `rotation` in degrees clockwise."""

    shape: str
    colour: Colour
    accent: Colour
    texture: Texture = Texture()
    x: float = 0.5
    y: float = 0.5
    size: float = 0.3
    rotation: int = 0
    mirror: bool = False
    character: Character | None = None
    wear: tuple[Wear, ...] = ()
    emblem: Emblem | None = None
    word: str | None = None

    @property
    def noun(self) -> str:
        """What it is, without its colour."""
        return self.character.species if self.character else self.shape

    @property
    def name(self) -> str:
        """What it is called in an instruction, such as `red striped car`."""
        pattern = "" if self.texture.kind == "plain" else ADJECTIVES[self.texture.kind] + " "
        return f"{self.colour.name} {pattern}{self.noun}"


@dataclass(frozen=True)
class Backdrop:
    """What stands behind the things; `detail` seeds its small shapes, `vanish` is a room's vanishing point."""

    kind: str
    colours: tuple[RGB, ...]
    detail: int = 0
    horizon: float = 0.6
    vanish: tuple[float, float] = (0.5, 0.45)
    texture: Texture = Texture()


@dataclass(frozen=True)
class Lighting:
    """A tint that multiplies every pixel; `spot` and `side` let it fall off from (x, y)."""

    kind: str = "day"
    tint: RGB = (255, 255, 255)
    x: float = 0.5
    y: float = 0.5


@dataclass(frozen=True)
class Environment:
    """Weather in front of everything; `detail` seeds where its drops or flakes are."""

    kind: str = "clear"
    colour: RGB = (255, 255, 255)
    detail: int = 0


@dataclass(frozen=True)
class Style:
    """How the finished image is redrawn; `inks` are dark to light, `pitch` the size of its marks."""

    kind: str = "flat"
    inks: tuple[RGB, ...] = ()
    pitch: float = 0.05
    angle: int = 0


@dataclass(frozen=True)
class Scene:
    """A whole image."""

    backdrop: Backdrop
    things: tuple[Thing, ...] = ()
    lighting: Lighting = Lighting()
    environment: Environment = Environment()
    style: Style = Style()
    frame: Colour | None = None


ADJECTIVES = {
    "stripes": "striped", "checker": "checkered", "dots": "dotted", "plaid": "plaid", "zigzag": "zigzag",
    "bricks": "brick-patterned", "rings": "ringed", "marble": "marbled", "gradient": "shaded",
    "triangles": "triangle-patterned", "waves": "wavy",
}  # fmt: skip
