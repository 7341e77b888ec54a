"""Samples as OmniGen2's language model reads them: prompts and conversations in its chat template, and their lengths.

An image is made of one instruction; what several turns make is left out of a plan, which says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigma_data.errors import ConfigError, SequenceError
from sigma_data.instruction import ATTRIBUTES, Attribute, Placeholder, Text, parse
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Kind, Piece, references_of, targets_of
from sigma_model.omnigen2.answers import IMAGE, pieces_of
from sigma_model.omnigen2.conditioning import load_tokenizer, refuse_control
from sigma_model.omnigen2.config import MAX_REFERENCES
from sigma_model.omnigen2.generate import plain_prompt
from sigma_model.omnigen2.prompts import IM_END, IMAGE_PAD, TRAINING_TOKENS, Route, dropped_text, text_of

_VERSION = 1
"""Grows whenever texts of the same sample would differ."""


@dataclass(frozen=True)
class Asked:
    """What an image is made of: its prompt in plain words, and the numbers of its references in their order."""

    prompt: str
    references: tuple[int, ...]
    target: int


@dataclass(frozen=True)
class Told:
    """Questions and answers: pieces of text, each with whether it is learnt; images in the order of their places."""

    pieces: tuple[tuple[str, bool], ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class ChatSettings:
    """How samples become text. `attribute_tokens`: they stay in prompts, as tokens of the vocabulary."""

    route: Route = Route.VAE
    max_tokens: int = TRAINING_TOKENS
    """Of a prompt; images are not counted."""
    attribute_tokens: bool = False


class ChatWords:
    """A tokenizer of Qwen2.5-VL with the texts of samples; an index counts with it. Pickles for loader workers.

    With `attribute_tokens` the tokenizer gets them as tokens of its own, behind all others. Raises ConfigError for a
    directory that holds no tokenizer of Qwen2.5-VL.
    """

    def __init__(self, processor: Path, settings: ChatSettings) -> None:
        self.settings = settings
        self.tokenizer: Any = load_tokenizer(processor)
        if settings.attribute_tokens:
            self.tokenizer.add_tokens([f"<{name}>" for name in ATTRIBUTES], special_tokens=True)
        self.attribute_ids = {
            name: int(self.tokenizer.convert_tokens_to_ids(f"<{name}>"))
            for name in ATTRIBUTES
            if settings.attribute_tokens
        }
        self._control = tuple(
            one for one in self.tokenizer.all_special_tokens if one.strip("<>") not in self.attribute_ids
        )
        said = self.tokenizer.backend_tokenizer.to_str()
        samples = [text_of("%", 2, route) for route in Route] + [dropped_text()]
        self.digest = hashlib.sha256(repr((_VERSION, said, samples, settings)).encode()).hexdigest()

    def sample(self, turns: Sequence[Turn], images: Collection[int]) -> Asked | Told:
        """A sample as it is learnt. Raises SequenceError for what OmniGen2 cannot be shown."""
        references = references_of(turns, images)
        targets = targets_of(turns)
        if missing := sorted(set(targets).difference(images)):
            raise SequenceError(f"image {missing[0]} is to be produced, but there is no such image")
        try:
            if not targets:
                return self._told(turns, references)
            if len(turns) > 1:
                raise SequenceError(f"it has {len(turns)} turns: OmniGen2 makes one image of one instruction")
            if len(references) > MAX_REFERENCES:
                raise SequenceError(f"it has {len(references)} references: OmniGen2 takes at most {MAX_REFERENCES}")
            prompt = plain_prompt(turns[0].instruction, references, attributes=self.settings.attribute_tokens)
            refuse_control(prompt, self._control)
            return Asked(prompt, tuple(references), targets[0])
        except ConfigError as error:
            raise SequenceError(str(error)) from None

    def _told(self, turns: Sequence[Turn], images: Sequence[int]) -> Told:
        instructions = [parse(turn.instruction, references=len(images)) for turn in turns]
        named = list(dict.fromkeys(number for one in instructions for number in one.placeholders))
        if absent := [number for number in named if number not in images]:
            raise SequenceError(f"the text names image {absent[0]}, and there is no such image")
        seen: set[int] = set()
        exchanges = []
        for turn, instruction in zip(turns, instructions, strict=True):
            words = []
            for part in instruction.parts:
                if isinstance(part, Placeholder):
                    words.append(IMAGE if part.number not in seen else f"image {part.number}")
                    seen.add(part.number)
                elif isinstance(part, Text):
                    words.append(part.text)
                elif isinstance(part, Attribute):
                    continue
            question, answer = "".join(words).strip(), turn.response or ""
            for text in (question, answer):
                refuse_control(text, self._control)
            exchanges.append((question, answer))
        before = [number for number in images if number not in named]
        return Told(tuple(pieces_of(exchanges, len(images))), (*before, *named))

    def outline(self, turns: Sequence[Turn], images: Collection[int]) -> list[Piece]:
        """The content of a sample for an index: references, then its texts whole, each as one part, then the target."""
        found = self.sample(turns, images)
        if isinstance(found, Told):
            shown = [Piece(Kind.LATENT, 0, image=number) for number in found.images]
            texts = [Piece(Kind.ANSWER if learnt else Kind.TEXT, 0, [Text(text)]) for text, learnt in found.pieces]
            return [*shown, *texts]
        shown = [Piece(Kind.LATENT, 0, image=number) for number in found.references]
        text = text_of(found.prompt, len(found.references), self.settings.route)
        return [*shown, Piece(Kind.TEXT, 0, [Text(text)]), Piece(Kind.TARGET, 0, image=found.target)]

    def count_many(self, texts: Iterable[str]) -> list[int]:
        """How many ids each text has, on all cores."""
        listed = list(texts)
        batch = self.tokenizer.backend_tokenizer.encode_batch_fast(listed, add_special_tokens=False)
        return [len(one) for one in batch]

    def pads(self, text: str) -> int:
        """Images that have a place in a text."""
        return text.count(IMAGE_PAD)

    def ids(self, text: str, image_tokens: Sequence[int], *, max_tokens: int | None = None) -> list[int]:
        """Ids of a text, each image's pad as often as `image_tokens` says.

        Beyond `max_tokens`, images not counted, what stands before the last `<|im_end|>` is cut, as the conditioner
        does.
        """
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if max_tokens is not None and len(ids) > max_tokens:
            closing = 1 + ids[::-1].index(self.tokenizer.convert_tokens_to_ids(IM_END))
            ids = ids[: max_tokens - closing] + ids[-closing:]
        pad = self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        counts = iter(image_tokens)
        row: list[int] = []
        for one in ids:
            row += [one] * next(counts) if one == pad else [one]
        return row
