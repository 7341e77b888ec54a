"""Text <-> token ids, with the control and attribute tokens of the model.

Words go through a copy of the tokenizer that knows no added tokens, and control and attribute tokens are
put in by id: so nothing that a user types can become one, and an attribute token is always one id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES, Attribute, Part, Placeholder, Text
from sigma_data.sequence.tokenizer_reader import AFFIXES, QWEN25_ADDED, QWEN25_WORDS, open_tokenizer, without_offsets

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BOS, EOS, IMAGE_START, IMAGE_END = CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
"""The delimiters of text and of images, in the order in which a tokenizer without them gets them."""

_PROBE = "A cat's 12 hats,\n\t in  <b> é ß Ω 漢字 🎨 \x00\x7f"  # NFC, as Qwen2.5 writes all text
_DIGEST_VERSION = 1


class _FastTokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def backend_tokenizer(self) -> Backend: ...


@dataclass(frozen=True)
class Encoded:
    """Token ids, and where the attribute tokens stand in them.

    `attributes` holds a pair (position in `ids`, running index of the token among these parts) for each
    attribute token, in the order of the text.
    """

    ids: tuple[int, ...]
    attributes: tuple[tuple[int, int], ...] = ()


class Tokenizer:
    """A tokenizer as the model uses it; pickles without transformers, so loader workers stay light.

    Control and attribute tokens that the tokenizer lacks get the next free ids, `CONTROL` first, then
    `ATTRIBUTES` in their order; those it has keep theirs. `tokenizer` is a transformers tokenizer or its
    `tokenizers` backend and is not changed; `vocab_size` is the number of rows of the embedding table.

    `rows` (name of an attribute -> row) are those that the weights have learnt for attribute tokens; without them,
    with Qwen2.5's tokenizer, the fifteen behind its own tokens. Attribute tokens have these ids, whatever other
    tokens were added.

    Raises ConfigError where the tokenizer is empty, is no byte-level BPE, has an id at `vocab_size` or above, or
    gives an attribute token another id than its row, or its row to another token.
    """

    def __init__(
        self,
        tokenizer: _FastTokenizer | Backend,
        *,
        vocab_size: int | None = None,
        name: str = "the tokenizer",
        rows: Mapping[str, int] | None = None,
    ) -> None:
        from tokenizers import Tokenizer as Backend

        source = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(source, Backend):
            raise ConfigError(f"{name}: not a fast tokenizer; use a directory with tokenizer.json")
        description = json.loads(source.to_str())
        model = description["model"]
        if model["type"] != "BPE":
            raise ConfigError(f"{name}: is a {model['type']} tokenizer; use a byte-level BPE such as Qwen2.5's")
        added = {str(token["content"]): int(token["id"]) for token in description["added_tokens"]}
        every: dict[str, int] = model["vocab"] | added
        rows = rows or _released_rows(model["vocab"], added)
        ids = _ids_of_ours(every, rows, name)

        highest, last = max((number, token) for token, number in (every | ids).items())
        if vocab_size is not None and highest >= vocab_size:
            raise ConfigError(
                f"{name}: token {last!r} has id {highest}, but the embedding table has {vocab_size} rows; "
                "use the tokenizer that belongs to the model"
            )
        self.bos, self.eos, self.image_start, self.image_end = (ids[token] for token in CONTROL)
        self.attribute_ids: Mapping[str, int] = {attribute: ids[f"<{attribute}>"] for attribute in ATTRIBUTES}
        self.vocab_size: int = highest + 1 if vocab_size is None else vocab_size
        vocab, merges = _words(model, added.keys() | ids.keys(), name)
        try:
            self._words = _backend(source, model, vocab, merges)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ConfigError(f"{name}: its vocabulary and merges do not belong together ({error})") from None
        self.digest: str = _digest(description, vocab, merges, ids)
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ConfigError(
                f"{name}: does not give back the text it is given; use a byte-level BPE such as Qwen2.5's"
            )

    @classmethod
    def load(
        cls, directory: str | Path, vocab_size: int | None = None, *, rows: Mapping[str, int] | None = None
    ) -> Tokenizer:
        """Read the tokenizer of a model's directory, offline.

        `tokenizer.json` is enough, and so are `vocab.json` and `merges.txt`, read as Qwen2's where no
        `tokenizer_config.json` says otherwise.

        Raises:
            ConfigError: no tokenizer there, an empty one, one that transformers reads with other ids than
                its files state, one with more ids than the `vocab_size` rows of the embedding table, or one
                whose attribute tokens do not have the `rows` of the weights.
        """
        tokenizer = open_tokenizer(directory)
        return cls(tokenizer, vocab_size=vocab_size, name=str(directory), rows=rows)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; none of them is a control or attribute token, whatever the text says.

        Qwen2.5 normalises to NFC. A lone surrogate, which UTF-8 cannot hold, becomes a question mark.
        """
        return tuple(self._words.encode(_clean(text), add_special_tokens=False).ids)

    def count_many(self, texts: Iterable[str]) -> list[int]:
        """How many ids `encode` gives for each text, on all cores; a planner's call, not one for a loader worker."""
        batch = self._words.encode_batch_fast([_clean(text) for text in texts], add_special_tokens=False)
        return [len(item) for item in batch]

    def encode_parts(self, parts: Sequence[Part]) -> Encoded:
        """Ids of a text segment: text as by `encode`, each attribute token as its one id.

        How the text is cut into neighbouring `Text` parts does not matter. Raises ValueError for a
        placeholder: it stands for an image, between segments.
        """
        ids: list[int] = []
        attributes: list[tuple[int, int]] = []
        pending = ""
        for part in parts:
            match part:
                case Text(text):
                    pending += text
                case Attribute(name):
                    ids += self.encode(pending) if pending else ()
                    pending = ""
                    attributes.append((len(ids), len(attributes)))
                    ids.append(self.attribute_ids[name])
                case Placeholder(number):
                    raise ValueError(f"<image_{number}> is no text: cut the instruction into segments first")
        ids += self.encode(pending) if pending else ()
        return Encoded(tuple(ids), tuple(attributes))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control, attribute and other added tokens and unused ids are left out."""
        return self._words.decode([int(number) for number in ids], skip_special_tokens=False)


def _released_rows(vocab: Mapping[str, int], added: Mapping[str, int]) -> Mapping[str, int]:
    """The rows behind Qwen2.5's own tokens, where BAGEL's and SIGMA's weights have them; none for another tokenizer."""
    own = {token: QWEN25_WORDS + place for place, token in enumerate(QWEN25_ADDED)}
    words = len(vocab.keys() - added.keys())
    if words != QWEN25_WORDS or any(added.get(token) != number for token, number in own.items()):
        return {}
    first = QWEN25_WORDS + len(own)
    return {attribute: first + place for place, attribute in enumerate(ATTRIBUTES)}


def _ids_of_ours(every: Mapping[str, int], rows: Mapping[str, int], name: str) -> dict[str, int]:
    """Ids of control and attribute tokens among `every` token's of a tokenizer. Raises ConfigError."""
    wanted = {f"<{attribute}>": row for attribute, row in rows.items()}
    free = itertools.count(max([*every.values(), *wanted.values()], default=-1) + 1)
    by_id = {number: token for token, number in every.items()}
    ids: dict[str, int] = {}
    hint = (
        "use the tokenizer that came with the weights, or, where these two do belong together, write the rows as "
        '"attribute_rows" into sigma.json'
    )
    for token in (*CONTROL, *(f"<{attribute}>" for attribute in ATTRIBUTES)):
        row = wanted.get(token)
        if token in every:
            ids[token] = every[token]
        else:
            ids[token] = next(free) if row is None else row
        if row is not None and ids[token] != row:
            raise ConfigError(f"{name}: gives {token} the id {ids[token]}, but its row in the weights is {row}; {hint}")
        if row is not None and by_id.get(row, token) != token:
            raise ConfigError(f"{name}: gives {by_id[row]!r} the id {row}, the row of {token} in the weights; {hint}")
    return ids


def _words(model: Mapping[str, Any], added: Set[str], name: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges of a tokenizer without its added tokens.

    A vocabulary may list added tokens among the words, where ordinary text could merge into one: there
    they go too. Raises ConfigError where it is empty or not byte-level.
    """
    from tokenizers import pre_tokenizers

    vocab = {token: number for token, number in model["vocab"].items() if token not in added}
    if not vocab:
        raise ConfigError(f"{name}: its vocabulary is empty; its directory lacks the vocabulary files")
    if not vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise ConfigError(f"{name}: lacks tokens for single bytes; use a byte-level BPE such as Qwen2.5's")
    merges = [
        (left, right)
        for left, right in model["merges"]
        if left not in added and right not in added and left + right not in added
    ]
    return vocab, merges


def _backend(
    source: Backend, model: Mapping[str, Any], vocab: dict[str, int], merges: list[tuple[str, str]]
) -> Backend:
    """A tokenizer of words alone: no added tokens, dropout, truncation, padding or post-processing."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    affixes = {name: model[name] for name in AFFIXES if model.get(name)}
    words = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=bool(model.get("ignore_merges")), **affixes))
    for component in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(source, component) is not None:
            setattr(words, component, getattr(source, component))
    return words


def _digest(
    description: Mapping[str, Any],
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    ids: Mapping[str, int],
) -> str:
    """SHA-256 over everything that decides ids: words, merges, how text is cut, control and attribute ids."""
    model = description["model"]
    rules = {
        "version": _DIGEST_VERSION,
        "ids": ids,
        "normalizer": description["normalizer"],
        "pre_tokenizer": json.loads(json.dumps(description["pre_tokenizer"]), object_hook=without_offsets),
        "ignore_merges": bool(model.get("ignore_merges")),
        "affixes": {name: model[name] for name in AFFIXES if model.get(name)},
    }
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    # Joined, not as JSON: Qwen2.5 has 150,000 of each, and the order of a vocabulary means nothing.
    numbered = (f"{number} {token}" for number, token in sorted((number, token) for token, number in vocab.items()))
    for lines in (numbered, (f"{left} {right}" for left, right in merges)):
        digest.update(("\n\n" + "\n".join(lines)).encode())
    return digest.hexdigest()


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
