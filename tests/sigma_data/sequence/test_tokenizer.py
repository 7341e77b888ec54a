"""Text <-> ids: control and attribute tokens by id alone, words as the tokenizer has them, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.places import ROOT
from support.small_tokenizers import QWEN_ADDED, qwen_directory, trained

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES, Attribute, Part, Placeholder, Text, parse
from sigma_data.sequence.tokenizer import CONTROL, Encoded, Tokenizer

TINY = ROOT / "sigma_model" / "presets" / "tiny"

FRAGMENTS = (
    *QWEN_ADDED, *CONTROL, *(f"<{name}>" for name in ATTRIBUTES), "<", ">", "<|", "|>", "im_end", "style", "<style >",
    "< style>", "<STYLE>", "</style>", "<image_1>", "<unk>", " ", "  ", "\n", "\r\n", "\t", "\x00", "'s", "12", "é",
    "e\u0301", "ﬁ", "Å", "漢字", "🎨", "👩‍🎨", "\u200b", "\ufeff", "\u2028", "ß", "İ",
)  # fmt: skip

texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=10).map("".join)
part_lists = st.lists(
    st.one_of(texts.map(Text), st.sampled_from(ATTRIBUTES).map(Attribute)), max_size=8
)  # fmt: skip


@cache
def tiny() -> Tokenizer:
    return Tokenizer.load(TINY, 1024)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    return qwen_directory(tmp_path_factory.mktemp("qwen"), files=files)


def ids_of(encoder: Tokenizer) -> dict[str, int]:
    control = dict(zip(CONTROL, (encoder.bos, encoder.eos, encoder.image_start, encoder.image_end), strict=True))
    return control | {f"<{name}>": number for name, number in encoder.attribute_ids.items()}


# Ids of control and attribute tokens ----------------------------------------------------------------


def test_control_tokens_keep_their_ids_and_attributes_follow_in_their_order(qwen: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(qwen), local_files_only=True)
    encoder = Tokenizer.load(qwen)
    for token in CONTROL:
        assert ids_of(encoder)[token] == tokenizer.convert_tokens_to_ids(token)
    assert list(encoder.attribute_ids.items()) == [(name, 410 + place) for place, name in enumerate(ATTRIBUTES)]
    assert encoder.vocab_size == 425
    assert len(tokenizer) == 410  # the tokenizer that was given is not changed


def test_a_tokenizer_without_any_gets_control_tokens_first(tmp_path: Path) -> None:
    encoder = Tokenizer.load(qwen_directory(tmp_path, files=["tokenizer.json"], added=()))
    tokens = [*CONTROL, *(f"<{name}>" for name in ATTRIBUTES)]
    assert ids_of(encoder) == {token: 400 + place for place, token in enumerate(tokens)}


def test_attribute_tokens_that_are_there_keep_their_ids(tmp_path: Path) -> None:
    added = (*QWEN_ADDED, "<select>", "<style>")
    encoder = Tokenizer.load(qwen_directory(tmp_path, files=["tokenizer.json", "tokenizer_config.json"], added=added))
    ids = encoder.attribute_ids
    assert (ids["select"], ids["style"], ids["subject"], ids["texture"]) == (410, 411, 412, 424)


def test_an_id_beyond_the_embedding_table_is_an_error_that_names_the_token(qwen: Path) -> None:
    assert Tokenizer.load(qwen, 425).vocab_size == 425
    with pytest.raises(ConfigError, match=r"'<select>' has id 424, but the embedding table has 424 rows"):
        Tokenizer.load(qwen, 424)


def test_qwen25s_vocabulary_without_its_configuration_still_gets_qwen25s_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tokenizer", "tokenizer_reader"):
        monkeypatch.setattr(f"sigma_data.sequence.{module}.QWEN25_WORDS", 400)  # stands for 151,643
    encoder = Tokenizer.load(qwen_directory(tmp_path, files=["vocab.json", "merges.txt"], added=()))
    shift = 151643 - 400
    assert {token: number + shift for token, number in ids_of(encoder).items()} == {
        "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652, "<|vision_end|>": 151653,
        **{f"<{name}>": 151665 + place for place, name in enumerate(ATTRIBUTES)},
    }  # fmt: skip


# Reading a directory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        ["tokenizer.json", "tokenizer_config.json"],
        ["tokenizer.json"],
        ["vocab.json", "merges.txt", "tokenizer_config.json"],
    ],
)
def test_every_set_of_files_gives_the_same_encoder(files: list[str], qwen: Path, tmp_path: Path) -> None:
    encoder = Tokenizer.load(qwen_directory(tmp_path, files=files))
    assert encoder.digest == Tokenizer.load(qwen).digest
    text = "the <style>style of <|im_end|> it's 12 élan 漢字"
    assert encoder.encode(text) == Tokenizer.load(qwen).encode(text)


def test_vocabulary_and_merges_alone_encode_the_same_words(qwen: Path, tmp_path: Path) -> None:
    encoder = Tokenizer.load(qwen_directory(tmp_path, files=["vocab.json", "merges.txt"]))
    text = "the tokenizer encodes the words of a directory"
    assert encoder.encode(text) == Tokenizer.load(qwen).encode(text)
    assert len(encoder.encode(text)) < len(text)


def test_a_models_own_config_json_does_not_disturb(qwen: Path, tmp_path: Path) -> None:
    files = ["vocab.json", "merges.txt", "tokenizer_config.json"]
    folder = qwen_directory(tmp_path, files=files)
    (folder / "config.json").write_text('{"model_type": "bagel", "architectures": ["Bagel"]}')
    assert Tokenizer.load(folder).digest == Tokenizer.load(qwen).digest


def broken(folder: Path, name: str) -> Path:
    both = ["tokenizer.json", "tokenizer_config.json"]
    match name:
        case "absent":
            return folder / "nowhere"
        case "nothing":
            return folder
        case "only settings":
            return qwen_directory(folder, files=["tokenizer_config.json"])
        case "half":
            return qwen_directory(folder, files=["vocab.json", "tokenizer_config.json"])
        case "no words":
            qwen_directory(folder, files=["vocab.json", "merges.txt"])
            (folder / "vocab.json").write_text("{}")
            (folder / "merges.txt").write_text("#version: 0.2\n")
        case "few words":
            qwen_directory(folder, files=["vocab.json", "merges.txt"])
            (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
            (folder / "merges.txt").write_text("#version: 0.2\n")
        case "broken":
            qwen_directory(folder, files=both)
            (folder / "tokenizer.json").write_text('{"model": {}}')
        case "no json":
            qwen_directory(folder, files=both)
            (folder / "tokenizer_config.json").write_text("{")
        case "a list":
            qwen_directory(folder, files=both)
            (folder / "tokenizer_config.json").write_text("[]")
        case "odd added":
            qwen_directory(folder, files=both)
            (folder / "added_tokens.json").write_text('{"<style>": "many"}')
        case "word level":
            import tokenizers

            words = tokenizers.models.WordLevel({"a": 0}, unk_token="a")
            tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
        case "spaces lost":
            tokenizer = trained()
            from tokenizers import pre_tokenizers

            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such directory"),
        ("nothing", "holds no tokenizer"),
        ("only settings", "holds no tokenizer"),
        ("half", "holds no tokenizer"),
        ("no words", "is empty"),
        ("few words", "single bytes"),
        ("broken", "cannot be read"),
        ("no json", "tokenizer_config.json: cannot be read"),
        ("a list", "must hold a JSON object"),
        ("odd added", "added tokens is not in the usual form"),
        ("word level", "WordLevel"),
        ("spaces lost", "does not give back"),
    ],
)
def test_a_directory_that_is_no_tokenizer_is_an_error_that_says_so(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Tokenizer.load(broken(tmp_path, name))
    assert str(caught.value).startswith(str(tmp_path))


def test_an_empty_tokenizer_of_transformers_is_an_error() -> None:
    from transformers import Qwen2Tokenizer

    with pytest.raises(ConfigError, match="is empty"):
        Tokenizer(Qwen2Tokenizer(vocab_file=str(TINY / "tokenizer.json")))


def test_two_words_with_one_id_are_an_error() -> None:
    import tokenizers

    description = json.loads(trained().to_str())
    vocab = description["model"]["vocab"]
    vocab[next(token for token, number in vocab.items() if number == 301)] = 300  # one of the two is lost
    with pytest.raises(ConfigError, match="do not belong together"):
        Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(description)))


def test_ids_that_the_files_state_but_the_loader_changes_are_an_error(tmp_path: Path) -> None:
    folder = qwen_directory(tmp_path, files=["vocab.json", "merges.txt", "tokenizer_config.json"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"]["500"] = {"content": "<style>", "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"give '<style>' the id 500, but it loads as 410"):
        Tokenizer.load(folder)


# Words ----------------------------------------------------------------------------------------------


@given(texts)
@example("<|im_end|>")
@example("<style>")
@example("a<style>b")
@example("<tool_call>")
@example("e\u0301")
@settings(deadline=None)
def test_nothing_that_is_typed_becomes_a_control_token_and_all_of_it_comes_back(text: str) -> None:
    ids = tiny().encode(text)
    assert all(0 <= number < 1000 for number in ids)  # bytes and merges; added tokens start at 1000
    assert tiny().decode(ids) == unicodedata.normalize("NFC", text)  # as Qwen2.5 writes all text


@given(texts)
@settings(deadline=None, max_examples=50)
def test_words_that_are_added_tokens_elsewhere_are_words_here(qwen_text: str) -> None:
    """The stand-in of Qwen2.5 has added tokens that transformers does not call special."""
    encoder = stand_in()
    ids = encoder.encode(qwen_text)
    assert all(number < 400 for number in ids)
    assert encoder.decode(ids) == unicodedata.normalize("NFC", qwen_text)


@cache
def stand_in() -> Tokenizer:
    from tokenizers import AddedToken

    tokenizer = trained()
    for token in QWEN_ADDED:
        tokenizer.add_tokens([AddedToken(token, special="call" not in token, normalized=False)])
    return Tokenizer(tokenizer)


def test_a_token_that_also_is_a_word_of_the_vocabulary_cannot_be_typed() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = trained(special_tokens=["<style>", "<|im_end|>"])
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    for left, right in [("<", "i"), ("d", ">"), ("<i", "d>")]:  # merges that make <id> out of text
        model["vocab"][left + right] = max(model["vocab"].values()) + 1
        model["merges"].insert(len(model["merges"]) if left == "<i" else 0, [left, right])
    tokenizer = type(tokenizer).from_str(json.dumps(description))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert tokenizer.encode("<id>").tokens == ["<id>"]
    encoder = Tokenizer(tokenizer)
    assert encoder.attribute_ids["id"] == model["vocab"]["<id>"]
    for text in ("<id>", "<style>", "<|im_end|>", "a<id>b"):
        assert not set(encoder.encode(text)) & set(ids_of(encoder).values())
        assert encoder.decode(encoder.encode(text)) == text


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert tiny().decode(tiny().encode("a\ud800b")) == "a?b"


def test_truncation_padding_and_dropout_of_the_files_do_not_reach_the_words() -> None:
    tokenizer = trained()
    tokenizer.model.dropout = 0.9
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    text = "the tokenizer encodes the words of a directory"
    encoder = Tokenizer(tokenizer)
    assert {encoder.encode(text) for _ in range(10)} == {Tokenizer(trained()).encode(text)}
    assert encoder.decode(encoder.encode(text)) == text


@given(st.lists(texts, max_size=5))
@settings(deadline=None, max_examples=50)
def test_many_texts_at_once_are_encoded_as_one_by_one(many: list[str]) -> None:
    assert tiny().count_many(many) == [len(tiny().encode(text)) for text in many]


def test_decoding_leaves_out_every_added_token_and_ids_without_a_token() -> None:
    encoder = tiny()
    ids = [encoder.bos, *encoder.encode("a dog"), encoder.attribute_ids["style"], 1023, 1 << 30, encoder.eos]
    assert encoder.decode(ids) == "a dog"


# Parts ----------------------------------------------------------------------------------------------


@given(part_lists)
@settings(deadline=None)
def test_an_attribute_token_is_its_one_id_whatever_surrounds_it(parts: list[Part]) -> None:
    encoder = tiny()
    names = {number: name for name, number in encoder.attribute_ids.items()}
    encoded = encoder.encode_parts(parts)
    expected = [part.name for part in parts if isinstance(part, Attribute)]
    assert [names[encoded.ids[position]] for position, _ in encoded.attributes] == expected
    assert [index for _, index in encoded.attributes] == list(range(len(expected)))
    assert sum(number >= 1000 for number in encoded.ids) == len(expected)
    runs: list[str] = [""]
    for part in parts:
        if isinstance(part, Text):
            runs[-1] += part.text
        else:
            runs.append("")
    assert encoder.decode(encoded.ids) == "".join(unicodedata.normalize("NFC", run) for run in runs)


@given(texts, st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_how_text_is_cut_into_parts_does_not_matter(text: str, cut: int) -> None:
    whole = tiny().encode_parts([Attribute("id"), Text(text)])
    assert tiny().encode_parts([Attribute("id"), Text(text[:cut]), Text(""), Text(text[cut:])]) == whole


def test_parts_of_an_instruction_get_the_ids_that_the_release_would_give_them(qwen: Path) -> None:
    """The oracle: the tokenizer itself with the attribute tokens added, fed the whole text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(qwen), local_files_only=True)
    tokenizer.add_tokens([f"<{name}>" for name in ATTRIBUTES], special_tokens=True)
    encoder = Tokenizer.load(qwen)
    for text in (
        "Transform the <id>man into a sketched illustration <style> style reference",
        "<select>the  first person\n from the left.<subject><clothing>  hat",
        "no token at all: it's 12 o'clock, élan 漢字 e\u0301",
        "<style>",
        " <texture> ",
        "",
    ):
        assert list(encoder.encode_parts(parse(text).parts).ids) == tokenizer.encode(text, add_special_tokens=False)


def test_where_attribute_tokens_stand_is_told_with_their_running_index() -> None:
    encoder = tiny()
    style, pose = encoder.attribute_ids["style"], encoder.attribute_ids["pose"]
    red = encoder.encode("red")
    encoded = encoder.encode_parts([Attribute("style"), Text("red"), Attribute("pose"), Attribute("style")])
    after = 1 + len(red)
    assert encoded == Encoded((style, *red, pose, style), ((0, 0), (after, 1), (after + 1, 2)))
    assert encoder.encode_parts([]) == Encoded(())


def test_a_placeholder_is_no_text() -> None:
    with pytest.raises(ValueError, match="<image_2>"):
        tiny().encode_parts([Text("the man of "), Placeholder(2)])


# Digest and processes -------------------------------------------------------------------------------


def variants() -> Mapping[str, Any]:
    from tokenizers import normalizers, pre_tokenizers

    plain, words, form, cut, added = trained(), trained(399), trained(), trained(), trained()
    form.normalizer = normalizers.NFKC()
    cut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    added.add_tokens(["<|endoftext|>"])
    return {"plain": plain, "words": words, "form": form, "cut": cut, "added": added}


def test_the_digest_differs_wherever_ids_could() -> None:
    digests = {name: Tokenizer(tokenizer).digest for name, tokenizer in variants().items()}
    assert len(set(digests.values())) == len(digests)


def test_the_digest_does_not_depend_on_what_decides_no_id() -> None:
    import tokenizers

    description = json.loads(trained().to_str())
    description["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] ^= True
    description["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "unk_token": "a"}
    other = tokenizers.Tokenizer.from_str(json.dumps(description))
    other.enable_padding(length=9)
    assert Tokenizer(other, vocab_size=2000, name="other").digest == Tokenizer(trained()).digest


@pytest.mark.slow
def test_another_process_has_the_same_digest() -> None:
    code = f"from sigma_data.sequence.tokenizer import Tokenizer; print(Tokenizer.load({str(TINY)!r}, 2000).digest)"
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == tiny().digest


def test_a_pickled_encoder_is_the_same_and_needs_no_transformers(tmp_path: Path) -> None:
    (tmp_path / "encoder.pickle").write_bytes(pickle.dumps(tiny()))
    code = (
        "import pickle, sys; encoder = pickle.load(open('encoder.pickle', 'rb'));"
        "print(encoder.encode('a red dog <style>'), encoder.digest, 'transformers' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == f"{tiny().encode('a red dog <style>')} {tiny().digest} False False"
