"""SIGMA's attribute tokens on OmniGen2: an option, for models whose tokenizer has them. Released ones have not.

The tokens stay in the prompt, and in the transformer each sees the latents of no other reference than its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sigma_data.instruction import ATTRIBUTES, parse
from sigma_model.omnigen2.pack import Bound
from sigma_model.omnigen2.prompts import Route


def attribute_ids(tokenizer: Any) -> dict[str, int]:
    """Ids of the attribute tokens by name; empty where the tokenizer has not all fifteen."""
    added: Mapping[str, int] = tokenizer.get_added_vocab()
    found = {name: int(added[f"<{name}>"]) for name in ATTRIBUTES if f"<{name}>" in added}
    return found if len(found) == len(ATTRIBUTES) else {}


def bound_tokens(
    ids: Sequence[int],
    own: Mapping[str, int],
    instruction: str,
    references: Sequence[int],
    bindings: Mapping[int, int] | None = None,
) -> Bound:
    """Where attribute tokens stand among the ids of a prompt, and the reference that each speaks of.

    `own` are their ids, `references` the numbers of the images in their order.
    """
    places = [place for place, one in enumerate(ids) if one in set(own.values())]
    if not places:
        return ()
    parsed = parse(instruction, references=len(references))
    unnamed = [number for number in references if number not in parsed.placeholders]
    groups = parsed.groups(before=unnamed, bindings=bindings)
    numbers = [0 if one is None or one not in references else list(references).index(one) + 1 for one in groups]
    return tuple(zip(places, numbers, strict=False))  # a prompt may have been cut


def among_states(bound: Bound, ids: Sequence[int], image_token: int, route: Route) -> Bound:
    """The same by places among the states, of which a route may leave out those of images."""
    if not route.shows_images or route.keeps_image_states:
        return bound
    return tuple((place - sum(one == image_token for one in ids[:place]), number) for place, number in bound)
