"""Small tokenizers in Qwen2.5's form, and directories that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.places import TESTS

QWEN_ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
)  # fmt: skip
"""Like Qwen2.5's 22: control tokens not side by side, and some that are not special."""


def trained(words: int = 400, **trainer: Any) -> Any:
    """A byte-level BPE cut as Qwen2.5 cuts text, learnt from the text of a test, without added tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bare = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = bare.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = trainers.BpeTrainer(vocab_size=words, show_progress=False, initial_alphabet=alphabet, **trainer)
    tokenizer.train_from_iterator([(TESTS / "sigma_data" / "test_text.py").read_text("utf-8")], learner)
    return tokenizer


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
