"""The files of a model's tokenizer -> a tokenizer of the `tokenizers` library, with the ids that the files state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigma_data.errors import ConfigError, reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip
"""What a directory may hold of its tokenizer; an export copies those that are there."""

QWEN25_WORDS = 151643
QWEN25_ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
"""Qwen2.5's own added tokens, 151643 to 151664: `vocab.json` and `merges.txt` alone do not tell them."""

_QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text into words."""

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def open_tokenizer(directory: str | Path) -> Backend:
    """The tokenizer of a model's directory, with the ids that its files state. Raises ConfigError."""
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such directory of a tokenizer")
    has = {file for file in TOKENIZER_FILES if (root / file).is_file()}
    if "tokenizer.json" not in has and not {"vocab.json", "merges.txt"} <= has:
        raise ConfigError(f"{root}: holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, must lie there")
    settings = _read(root / "tokenizer_config.json") if "tokenizer_config.json" in has else {}
    stated = _stated_ids(root, settings)
    tokenizer = _as_stored(root, settings, stated) if has == {"tokenizer.json", "tokenizer_config.json"} else None
    if tokenizer is None:
        tokenizer = _by_transformers(root, named="tokenizer.json" in has or "tokenizer_class" in settings)
    if not stated and len(tokenizer.get_vocab(with_added_tokens=False)) == QWEN25_WORDS:
        tokenizer.add_special_tokens([*QWEN25_ADDED])
    for token, number in stated.items():
        found = tokenizer.token_to_id(token)
        if found != number:
            raise ConfigError(
                f"{root}: its files give {token!r} the id {number}, but it loads as {found}; "
                "use the tokenizer files of one release together"
            )
    return tokenizer


def without_offsets(value: dict[str, Any]) -> dict[str, Any]:
    """Whether offsets are trimmed changes no id, and the same tokenizer is stored both ways."""
    return {name: content for name, content in value.items() if name != "trim_offsets"}


def _as_stored(root: Path, settings: Mapping[str, Any], stated: Mapping[str, int]) -> Backend | None:
    """The tokenizer in `tokenizer.json` if it is Qwen2's with all its tokens: transformers would make the same of it.

    None otherwise. Importing transformers takes a second, more than anything else in the start of a tiny model.
    """
    from tokenizers import Tokenizer as Backend

    more = ("add_prefix_space", "extra_special_tokens")
    if settings.get("tokenizer_class") != "Qwen2Tokenizer" or any(settings.get(name) for name in more):
        return None
    try:
        tokenizer = Backend.from_file(str(root / "tokenizer.json"))
        description = json.loads(tokenizer.to_str())
        there = {token["content"]: token["id"] for token in description["added_tokens"]}
        whole = _is_qwen2(description) and stated.items() <= there.items() and _special(settings) <= there.keys()
    except Exception:  # broken files make the library raise anything: transformers' words for it are the known ones
        return None
    return tokenizer if whole else None


def _special(settings: Mapping[str, Any]) -> set[str]:
    """Tokens that transformers adds to Qwen2's where the file lacks them."""
    found = [settings.get(f"{role}_token", "<|endoftext|>") for role in ("unk", "eos", "pad")]
    found += [settings.get("bos_token"), *(settings.get("additional_special_tokens") or ())]
    return {token["content"] if isinstance(token, dict) else token for token in found if token is not None}


def _is_qwen2(description: Mapping[str, Any]) -> bool:
    """Whether a stored tokenizer normalises, cuts and merges as transformers' Qwen2Tokenizer does."""
    model, cuts = description["model"], description["pre_tokenizer"] or {}
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_CUTS}, "behavior": "Isolated", "invert": False}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    unusual = (*AFFIXES, "unk_token", "dropout", "fuse_unk", "byte_fallback", "ignore_merges")
    return (
        model["type"] == "BPE"
        and not any(model.get(name) for name in unusual)
        and description["normalizer"] == {"type": "NFC"}
        and (description["decoder"] or {}).get("type") == "ByteLevel"
        and cuts.get("type") == "Sequence"
        and [without_offsets(part) for part in cuts["pretokenizers"]] == [split, levels]
    )


def _by_transformers(root: Path, *, named: bool) -> Backend:
    """The backend of the transformers tokenizer of a directory; `named`: its files say which class it is."""
    from logging import ERROR

    from tokenizers import Tokenizer as Backend
    from transformers import AutoTokenizer, Qwen2Tokenizer
    from transformers.utils import logging

    # Without a name AutoTokenizer gives up; the released layout's vocab.json is Qwen2's.
    reader: Any = AutoTokenizer if named else Qwen2Tokenizer
    options = {"trust_remote_code": False} if named else {}
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)  # it would warn of a model type it does not know, which is no news here
    try:
        tokenizer = reader.from_pretrained(str(root), local_files_only=True, **options)
    except Exception as error:  # broken files make the libraries raise anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{root}: its tokenizer cannot be read ({reason})") from None
    finally:
        logging.set_verbosity(before)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise ConfigError(f"{root}: not a fast tokenizer; use a directory with tokenizer.json")
    return backend


def _stated_ids(root: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Ids of added tokens as the files state them: transformers numbers them anew where they leave gaps."""
    stated: dict[str, int] = {}
    try:
        if (root / "added_tokens.json").is_file():
            stated |= {token: int(number) for token, number in _read(root / "added_tokens.json").items()}
        for number, token in settings.get("added_tokens_decoder", {}).items():
            stated[token["content"]] = int(number)
        if (root / "tokenizer.json").is_file():
            for token in _read(root / "tokenizer.json").get("added_tokens", []):
                stated[token["content"]] = int(token["id"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{root}: its list of added tokens is not in the usual form ({error!r})") from None
    return stated


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return value
