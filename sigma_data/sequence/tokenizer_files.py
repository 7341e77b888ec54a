"""The files of a tokenizer that holds our control and attribute tokens, so that other programs give them our ids.

A release's tokenizer lacks the attribute tokens; a reader that is not ours would cut `<style>` into three words.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES
from sigma_data.sequence.tokenizer import CONTROL, Tokenizer
from sigma_data.sequence.tokenizer_reader import TOKENIZER_FILES, open_tokenizer
from sigma_data.storage.files import dump_json, write_atomic

_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def write_tokenizer(source: Path, out: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer in `source` to the directory `out`, with all of `tokenizer`'s tokens among the added ones.

    `tokenizer.json` and `tokenizer_config.json` are always written, the other files where `source` has them. An id
    below a new token's that no token has is given to a reserved one: tokenizers have no gaps.

    Raises ConfigError where `source` does not hold this tokenizer, and OSError.
    """
    has = {name for name in TOKENIZER_FILES if (source / name).is_file()}
    for name in has - {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}:
        shutil.copyfile(source / name, out / name)

    stored = json.loads(open_tokenizer(source).to_str())
    description = _read(source / "tokenizer.json") if "tokenizer.json" in has else stored
    description["added_tokens"] = stored["added_tokens"] + _new_tokens(stored, tokenizer)
    added = sorted(description["added_tokens"], key=lambda token: token["id"])
    description["added_tokens"] = added
    _write(out / "tokenizer.json", description)

    settings = _read(source / "tokenizer_config.json") if "tokenizer_config.json" in has else {}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast" if "tokenizer.json" in has else "Qwen2Tokenizer")
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
    }
    _write(out / "tokenizer_config.json", settings)
    if "added_tokens.json" in has:
        _write(out / "added_tokens.json", {token["content"]: token["id"] for token in added})
    written = Tokenizer(open_tokenizer(out), vocab_size=tokenizer.vocab_size, rows=tokenizer.attribute_ids)
    if written.digest != tokenizer.digest:
        raise ConfigError(f"{source}: its files have changed since the tokenizer was read from them")


def _new_tokens(stored: dict[str, Any], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Entries of `added_tokens` for the tokenizer's tokens that a stored tokenizer lacks, and for gaps below them."""
    control = dict(
        zip(CONTROL, (tokenizer.bos, tokenizer.eos, tokenizer.image_start, tokenizer.image_end), strict=True)
    )
    ours = control | {f"<{name}>": tokenizer.attribute_ids[name] for name in ATTRIBUTES}
    there = {token["content"] for token in stored["added_tokens"]}
    missing = {number: token for token, number in ours.items() if token not in there}
    taken = {token["id"] for token in stored["added_tokens"]} | set(stored["model"]["vocab"].values())
    gaps = set(range(max(missing, default=0))) - taken - set(missing)
    missing |= {number: f"<|reserved_{number}|>" for number in gaps}
    return [
        {"id": number, "content": token, **_PLAIN, "special": token.startswith("<|")}
        for number, token in sorted(missing.items())
    ]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))  # `open_tokenizer` has read it before
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, dump_json(content))
