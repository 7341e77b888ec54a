"""What an injection is asked for and what it gives: plain records."""

from __future__ import annotations

from dataclasses import dataclass

from sigma_data.sample import Family

VERSION = 2
"""Of the rules with their words and frames; raised when they give other instructions than before."""


@dataclass(frozen=True)
class Reference:
    """An image that the instruction must name.

    `kind` is canny, depth, style, mask or background if it is known, `label` a few words for what it shows.
    """

    image: int
    kind: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Request:
    """A caption to be turned into an interleaved instruction.

    `references` are the images that it must name, in their order, `context` further images that it may name (earlier
    answers of a conversation). `key` draws the family's frame, `injected` says that the text has its tokens already.
    """

    family: Family
    caption: str
    references: tuple[Reference, ...]
    context: tuple[int, ...] = ()
    key: str = ""
    injected: bool = False

    @property
    def images(self) -> frozenset[int]:
        """Numbers of the images that the instruction may name."""
        return frozenset((*(one.image for one in self.references), *self.context))


@dataclass(frozen=True)
class Phrase:
    """Words of the instruction that have an attribute token, and the image they speak of.

    `in_frame` tells words that the family's frame adds from those of the caption.
    """

    text: str
    token: str
    image: int
    in_frame: bool = False


@dataclass(frozen=True)
class Injection:
    """The outcome for one caption.

    `outcome` is `injected` (tokens or placeholders were placed), `kept` (the text has or needs none) or `refused`;
    `code` and `message` say why it was refused, `instruction` is the plain caption then. `bindings` are given only
    where the wording alone would bind a token to another image, `replaced` are words that a placeholder stands for.
    """

    instruction: str
    family: Family
    outcome: str
    phrases: tuple[Phrase, ...] = ()
    bindings: tuple[tuple[int, int], ...] = ()
    replaced: tuple[str, ...] = ()
    code: str = ""
    message: str = ""

    @property
    def refused(self) -> bool:
        """Whether the caption stands as it came."""
        return self.outcome == REFUSED


INJECTED, KEPT, REFUSED = "injected", "kept", "refused"


def refusal(request: Request, code: str, message: str) -> Injection:
    """The outcome of a caption that is left as it is."""
    return Injection(request.caption, request.family, REFUSED, code=code, message=message)
