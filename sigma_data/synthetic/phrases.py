"""Words: phrases with their attribute token before and their image after, and sentence building."""

from __future__ import annotations

from sigma_data.synthetic.backdrops import NAMES as PLACES
from sigma_data.synthetic.rng import KeyedRng
from sigma_data.synthetic.scene import Backdrop, Style, Thing
from sigma_data.synthetic.styles import NAMES as STYLES

LIGHTS = {
    "golden": "golden light", "moonlit": "moonlight", "rosy": "rosy light", "dim": "dim light",
    "greenish": "green light",
    "spotlight": "spotlight", "side": "light from the side", "day": "daylight",
}  # fmt: skip
WEATHERS = {
    "rain": "rain", "snow": "falling snow", "fog": "fog", "petals": "drifting petals", "leaves": "falling leaves",
    "sparks": "glowing sparks",
}  # fmt: skip


def ref(rng: KeyedRng, token: str, words: str, role: str) -> str:
    """`<token>words<image>`, with one of the joints that occur in real instructions."""
    return f"<{token}>{words}{rng.pick((' from ', ' in ', ' of ', ' ', ''))}[{role}]"


def loose(rng: KeyedRng, words: str, role: str) -> str:
    """A phrase and its image without an attribute token."""
    return f"{words}{rng.pick((' from ', ' in ', ' '))}[{role}]"


def noun(rng: KeyedRng, item: Thing) -> str:
    """A thing in more or fewer words."""
    if item.character:
        return rng.pick((item.name, item.noun, "character", "creature"))
    return rng.pick((item.name, item.name, item.noun, "object"))


def full(item: Thing) -> str:
    """A thing in words that say all that is to be seen of it."""
    words = item.name
    second = f" with {item.texture.colour.name}" if item.texture.colour else ""
    if item.character:
        mood = {"happy": "happy", "sad": "sad", "surprised": "surprised", "angry": "angry", "sleepy": "sleepy"}[
            item.character.emotion
        ]
        words = f"{mood} {item.colour.name} {item.character.species}"
    return f"{article(words)}{second}"


def scenery(rng: KeyedRng, drop: Backdrop) -> str:
    """A name of the place."""
    return rng.pick(PLACES[drop.kind])


def manner(rng: KeyedRng, style: Style) -> str:
    """A name of the style, or words that leave it to the image."""
    return rng.pick((*STYLES[style.kind], "style", "style reference", "artistic style"))


def article(words: str) -> str:
    """The words with `a` or `an`; several things (`green hills`) take none."""
    if words.endswith("s"):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def listed(words: list[str]) -> str:
    """`one`, `one and two`, `one, two and three`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def sentence(text: str) -> str:
    """The text with its first letter large and a full stop."""
    text = text.strip()
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
