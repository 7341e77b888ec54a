"""Small tokenizers in Qwen2.5's form, and directories that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

QWEN_ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
)  # fmt: skip
"""Like Qwen2.5's 22: control tokens not side by side, and some that are not special."""


TEXT = """\
A tokenizer cuts a text into words and pieces of words, and gives each piece a number. The words of a sentence that
were seen often become one token; the rare ones are written with several. Nothing is lost: what was encoded is decoded
to the same text, with its spaces, its lines and its marks, in whichever language it was written.

    for token in tokenizer.encode("Put the red dog of <image_1> on the green hill, in the style of <image_2>."):
        print(token, tokenizer.decode([token]))

The vocabulary of a small tokenizer is learnt from a text as short as this one. It starts with the 256 bytes; then the
pair of neighbours that stands most often in the text is merged into a new token, and so on until there are as many
as were asked for. Two trainings on the same text give the same merges in the same order, so the ids are the same.
Control tokens such as <|im_start|> and <|im_end|> stand behind the words and are never made out of text: whoever
types one gets its letters. The fifteen attribute tokens, among them <style>, <subject>, <background>, <relation>,
<layout> and <select>, follow them, each with an id of its own that an image's instruction refers to.

def count(texts: list[str]) -> list[int]:
    return [len(encoder.encode(text)) for text in texts]

An embedding table has one row for each id, 0, 1, 2, 3 and so on to 1023; an id beyond the last row is an error that
names the token. Caf\u00e9, na\u00efve, \u00fcber: letters with accents take two bytes, \u6f22\u5b57 three each, and an emoji four.
"""


def trained(words: int = 400, special_tokens: Sequence[str] = ()) -> Any:
    """A byte-level BPE cut as Qwen2.5 cuts text, learnt from `TEXT`, without added tokens."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_trained(words, tuple(special_tokens)))


@cache
def _trained(words: int, special: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bare = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = bare.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = trainers.BpeTrainer(
        vocab_size=words, show_progress=False, initial_alphabet=alphabet, special_tokens=list(special)
    )
    tokenizer.train_from_iterator([TEXT], learner)
    return str(tokenizer.to_str())


def qwen_directory(folder: Path, *, files: Sequence[str], added: Sequence[str] = QWEN_ADDED, words: int = 400) -> Path:
    """A directory as Qwen2.5's: words first, then added tokens, in any of its files."""
    from tokenizers import AddedToken

    tokenizer = trained(words)
    for token in added:
        tokenizer.add_tokens(
            [AddedToken(token, special=token.startswith("<|") and "fim" not in token, normalized=False)]
        )
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    decoder = {
        str(token["id"]): {key: token[key] for key in token if key != "id"} for token in description["added_tokens"]
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None, "split_special_tokens": False,
    }  # fmt: skip
    content = {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(settings),
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": merges,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text(content[name], "utf-8")
    return folder
