#!/usr/bin/env bash
# tokenizers 0.23.3: a tokenizer.json whose added tokens leave a gap in the ids loads with other ids, without a word.
#
# Guess before the first run: the "id" of an entry of "added_tokens" is what the token encodes to.
# Seen: the ids are counted on from the end of the vocabulary in the order of the entries; 7 and 9 load as 3 and 4,
# and saving writes 3 and 4. A model whose embedding rows were trained at the stated ids then reads other rows.
# Why it matters: checkpoints keep spare rows behind the vocabulary, and a special token given a row further back
# (as many post-training recipes do) needs every row before it to be named, too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3

cat > "$work/check.py" <<'PYTHON'
import json

from tokenizers import Tokenizer, models

plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))


def load(*ids):
    """A tokenizer from JSON that states these ids for <x>, <y> ...; the ids it gives."""
    stated = json.loads(plain.to_str())
    names = [f"<{letter}>" for letter in "xyzuvw"[: len(ids)]]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    stated["added_tokens"] = [{"id": number, "content": name, **flags} for number, name in zip(ids, names)]
    loaded = Tokenizer.from_str(json.dumps(stated))
    saved = [entry["id"] for entry in json.loads(loaded.to_str())["added_tokens"]]
    return [loaded.token_to_id(name) for name in names], loaded.encode("".join(names)).ids, saved


gap = load(7, 9)
filled = load(3, 4, 5, 6, 7)
print("stated 7, 9:          ", *gap)
print("stated 3, 4, 5, 6, 7: ", *filled)
assert gap == ([3, 4],) * 3, "the behaviour has changed: ids with a gap are kept now"
assert filled == ([3, 4, 5, 6, 7],) * 3
PYTHON
"$work/venv/bin/python" "$work/check.py"
