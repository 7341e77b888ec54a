"""The tokenizer of the `tiny` preset: `python -m tools.train_tiny_tokenizer --out DIR` trains and writes it.

A byte-level BPE in Qwen2.5's form, learnt from the instructions of the embedded `world` corpus and a page of
plain English. The same code writes the same bytes, so the files in the preset can be made again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigma_data.errors import SigmaError
from sigma_data.instruction import Part, Placeholder, Text, parse
from sigma_data.sequence.tokenizer import CONTROL
from sigma_data.sequence.tokenizer import Tokenizer as SigmaTokenizer
from sigma_data.storage.files import disk_error, dump_json, write_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = 1000
"""Ids of bytes and merges; with 5 control and 15 attribute tokens the preset's 1,024 rows suffice."""

TRAINING_SAMPLES = 600
"""Instructions a family to learn from; those after them are for the figures."""

MEASURED_SAMPLES = 100

ENGLISH_WEIGHT = 20
"""How often the page of English counts: world instructions then take 1 % more tokens than without it."""

END_OF_TEXT = "<|endoftext|>"

# How Qwen2.5 cuts text into words before it merges bytes; a fact of the released tokenizer.json.
_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps for an hour or two.",
    "What is shown in this picture? There are three people standing near an old wooden house.",
    "How many birds can you see? I can see seven of them, sitting on a branch by the river.",
    "Is the man wearing a hat? No, but the woman behind him has a yellow coat and long hair.",
    "Please make the photo look like an oil painting with warm colours and soft light.",
    "Change her dress into a blue jacket, keep the face as it is, and remove the car from the street.",
    "Put the cat from the first image next to the dog in the second one, both looking at the camera.",
    "Which colour is the largest thing on the table? It is green, and its shape is round.",
    "Answer the question with yes or no. Describe the scene in one short sentence.",
    "When they came back to the city in winter, everything was covered with snow and very quiet.",
    "She would have gone with him, but there was not enough time before the last train left.",
    "Add some text to the sign above the door, for example the name of the shop.",
    "We should not forget that children often know more about these games than their parents do.",
    "Where does the water come from? It runs down from the mountains into a small lake.",
    "Each of these pages has a number between 10 and 250; write it below the title.",
    "It could be any kind of food: bread, cheese, rice, fruit, vegetables or something sweet.",
    "Move the lamp to the left side of the room and turn it on so that the wall becomes brighter.",
    "Because of the strong wind, nobody wanted to go outside without a good reason.",
    "Just use the same background, the same pose, and a different expression.",
    "Their friends were playing music under the trees while other people danced.",
)


@dataclass(frozen=True)
class Figures:
    """How well a tokenizer fits world instructions it was not trained on."""

    ids: int
    """Length of the tokenizer, attribute tokens included."""
    tokens: float
    """Tokens an instruction, attribute tokens included, placeholders and delimiters not."""
    bytes_per_token: float
    """UTF-8 bytes of plain text a token of plain text."""


def instructions(start: int, stop: int) -> Iterator[tuple[Part, ...]]:
    """The parts of world instructions `start` to `stop` of each family, without drawing a picture.

    They are those of `world.draw_sample` with seed 0, but for the numbers of the placeholders.
    """
    from sigma_data.synthetic.families import RECIPES
    from sigma_data.synthetic.phrases import sentence
    from sigma_data.synthetic.rng import KeyedRng

    for index in range(start, stop):
        for family, recipe in RECIPES.items():
            draft = recipe(KeyedRng("world", 0, family.value, index))
            text = re.sub(r"\[\w+\]", "<image_1>", draft.instruction)
            yield parse(sentence(text)).parts


def train() -> Tokenizer:
    """The tokenizer, without the attribute tokens: as a released directory has it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    words = (part.text for parts in instructions(0, TRAINING_SAMPLES) for part in parts if isinstance(part, Text))
    tokenizer.train_from_iterator([*words, *_ENGLISH * ENGLISH_WEIGHT], trainer)
    tokens = (END_OF_TEXT, *CONTROL)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return tokenizer


def write(out: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as transformers reads them. Raises BuildError."""
    tokenizer = train()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "tokenizer.json", tokenizer.to_str() + "\n")
        write_atomic(out / "tokenizer_config.json", dump_json(_settings(tokenizer)))
    except OSError as error:
        raise disk_error(error, out) from None


def measure(directory: Path) -> Figures:
    """Figures of the tokenizer in a directory, on instructions after those it learnt from."""
    encoder = SigmaTokenizer.load(directory)
    tokens = attributes = size = count = 0
    for parts in instructions(TRAINING_SAMPLES, TRAINING_SAMPLES + MEASURED_SAMPLES):
        words = [part for part in parts if not isinstance(part, Placeholder)]
        encoded = encoder.encode_parts(words)
        tokens += len(encoded.ids)
        attributes += len(encoded.attributes)
        size += sum(len(part.text.encode()) for part in words if isinstance(part, Text))
        count += 1
    return Figures(encoder.vocab_size, tokens / count, size / (tokens - attributes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, print the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train and write the tokenizer of the tiny preset.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the files; others in it stay")
    out: Path = parser.parse_args(arguments).out
    try:
        write(out)
        figures = measure(out)
    except SigmaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(
        f"{out}: {figures.ids} ids with the attribute tokens; on world instructions not trained on "
        f"{figures.tokens:.1f} tokens an instruction, {figures.bytes_per_token:.2f} bytes a token\n"
    )
    return 0


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }
        for token in (END_OF_TEXT, *CONTROL)
    }  # fmt: skip
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(CONTROL),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


if __name__ == "__main__":
    sys.exit(main())
