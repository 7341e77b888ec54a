"""Interleaved instructions: every spelling is read, one is written, nothing is lost or made up."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sigma_data.instruction import (
    ATTRIBUTES,
    Attribute,
    Instruction,
    Part,
    Placeholder,
    Text,
    canonical,
    parse,
    render,
    renumber,
)

FRAGMENTS = (
    "<", "<<", ">", ">>", "<>", "</", "< ", " >", "/>", "<|", "|>", "|", "_", "_1>", "1>", " 1>", "1", "#1", "#", "0",
    "image", "<image", "<Image", "< image", "<image_", "<image ", "image>", "<image>", "<IMAGE>", "<image_1>",
    "<image 2>", "<Image_3>", "<image1>", "< image 1 >", "<image #1>", "<image_0>", "<image_999999>",
    "<image_9999999>", "<image_01>", "<image-1>", "<images>", "<imag", "e_1>", "<image_\n1>", "<image\t4>",
    "style", "<style>", "<STYLE>", "<sty", "le>", "< style >", "</style>", "<style/>", "<subjct>", "<identity>",
    "<id>", "<select>", "<b>", "<br/>", '<a href="x">', "<im_end>", "<|im_end|>", "<|vision_start|>", "<|", "im_end|>",
    " ", "\n", "\t", "\u00a0", "\u2028", "é", "İ", "ı", "ſ", "画像", "🎨", "\ud800", "\x00", "a", "x<3", "<3", "a < b",
)  # fmt: skip

texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=12).map("".join)


def names(text: str, **options: int) -> tuple[int, ...]:
    return parse(text, **options).placeholders


# Spellings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "<image_1>",
        "<image 1>",
        "<Image 1>",
        "<image1>",
        "<Image1>",
        "<IMAGE_1>",
        "<Image_1>",
        "<iMaGe 1>",
        "< image_1 >",
    ],
)
def test_every_spelling_of_a_numbered_placeholder_is_read_and_written_in_one(spelling: str) -> None:
    text = f"paint the man from {spelling} in oil"
    assert names(text, references=3) == (1,)
    assert canonical(text, references=3) == "paint the man from <image_1> in oil"


@pytest.mark.parametrize("spelling", ["<image>", "<Image>", "<IMAGE>"])
def test_a_bare_placeholder_is_image_1_where_there_is_just_one_picture(spelling: str) -> None:
    assert names(f"{spelling} once, {spelling} twice", references=1) == (1, 1)


@pytest.mark.parametrize("pictures", [None, 2, 3])
def test_bare_placeholders_count_up_where_there_are_several_pictures(pictures: int | None) -> None:
    assert parse("<image> then <Image> then <image>", references=pictures).placeholders == (1, 2, 3)


def test_large_numbers_and_zero_are_placeholders_and_absurd_ones_are_reported() -> None:
    assert names("<image_12> <image_999999> <image_0>") == (12, 999_999, 0)
    assert parse("<image_1000000000000>").placeholders == ()
    assert parse("<image_1000000000000>").unknown == ("<image_1000000000000>",)


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_each_of_the_fifteen_tokens_is_read_in_any_case(name: str, spell: object) -> None:
    assert callable(spell)
    assert parse(f"<{spell(name)}>a thing").parts == (Attribute(name), Text("a thing"))
    assert canonical(f"<{spell(name)}>a thing") == f"<{name}>a thing"


def test_the_tokens_are_the_fifteen_of_the_paper_in_their_order() -> None:
    order = "style subject id icon text pose layout perspective lighting background environment emotion clothing"
    assert tuple([*order.split(), "texture", "select"]) == ATTRIBUTES


@pytest.mark.parametrize("spelling", ["<identity>", "<Identity>", "<IDENTITY>"])
def test_identity_is_an_accepted_spelling_of_id(spelling: str) -> None:
    assert canonical(f"{spelling}man") == "<id>man"


# Sentences of spec/data.md --------------------------------------------------------------------------

SENTENCES = [
    (
        "Transform the <id>man into a sketched illustration the photograph <image_3>, as the transformation from "
        "<image_1> to <style>style reference<image_2>",
        3, ("id", "style"), (3, 1, 2), (3, 2),
    ),
    (
        "As the transformation from <image_1> to <style>style reference<image_2>, transform the photo<image_3> into a "
        "mosaic-style artwork with abstract color blocks",
        3, ("style",), (1, 2, 3), (2,),
    ),
    ("Isolate <select> the first person from the left in <Image>.", 1, ("select",), (1,), (1,)),
    (
        "Position <subject> kangaroo in <Image 2> and <id>woman with brown hair from <Image_1>.",
        2, ("subject", "id"), (2, 1), (2, 1),
    ),
    (
        "Place the woman wearing a blue top and blue pants from <Image 2> in the bedroom scene from <Image 1>. "
        "Accessorize using the cream-colored beret in <Image 3>.",
        3, (), (2, 1, 3), (),
    ),
    (
        "Keep the <subject>dancer in her <clothing>red dress before the <background>harbour of <image 1>",
        1, ("subject", "clothing", "background"), (1,), (1, 1, 1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "pictures", "attributes", "placeholders", "groups"), SENTENCES)
def test_the_sentences_of_the_release_are_understood(
    text: str, pictures: int, attributes: tuple[str, ...], placeholders: tuple[int, ...], groups: tuple[int, ...]
) -> None:
    instruction = parse(text, references=pictures)
    assert instruction.attributes == attributes
    assert instruction.placeholders == placeholders
    assert instruction.groups() == groups
    assert instruction.unknown == instruction.control == ()
    assert "<" not in instruction.plain


# Ordinary text --------------------------------------------------------------------------------------

ORDINARY = [
    "a < b and c > d", "x<3", "i <3 this", "<3", "if 1 < 2 > 0", "<<", ">>", "<>", "a <- b -> c", "<!-- note -->",
    '<a href="https://example.org/?a=1&b=2">', '<img src="x.png" alt="a dog">', "<joe@example.org>",
    "Joe <joe.doe+x@mail.example.org> wrote", "<https://example.org>", "<1>", "<12 cm>", "< 5 mm>", "5 <x< 7",
    "a less-than sign < and style> later", "<style of a painter", "<two words>", "", " ", "\n", "größer < kleiner",
    "image 1, image_2", "the <", "> the", "<画像>", "<|>", "<| not a token |>",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone_to_the_letter(text: str) -> None:
    instruction = parse(text, references=1)
    assert instruction.parts == ((Text(text),) if text else ())
    assert instruction.unknown == instruction.control == ()
    assert canonical(text) == text


@given(st.text(alphabet=st.characters(exclude_characters="<")))
def test_text_without_a_bracket_is_text(text: str) -> None:
    assert parse(text).parts == ((Text(text),) if text else ())


# What looks like a token but is none ----------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    ["<subjct>", "<styles>", "<Backgroud>", "</style>", "< style >", "<style >", "<style/>", "</ id>", "<image #1>",
     "<image_99999999>", "<image-1>", "<image_one>", "<foo>", "<image_1_2>"],
)  # fmt: skip
def test_a_misspelt_token_is_reported_and_kept(token: str) -> None:
    text = f"draw the {token}man of <image_1>"
    instruction = parse(text, references=1)
    assert instruction.unknown == (token,)
    assert instruction.attributes == ()
    assert canonical(text) == text


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|vision_start|>"])
def test_a_control_token_is_reported_and_kept(token: str) -> None:
    instruction = parse(f"a{token}b")
    assert instruction.control == (token,)
    assert instruction.unknown == ()
    assert instruction.parts == (Text(f"a{token}b"),)


def test_reports_come_in_the_order_of_the_text_with_repeats() -> None:
    instruction = parse("<subjct> <foo> <|a|> <subjct> <|b|> <|a|>")
    assert instruction.unknown == ("<subjct>", "<foo>", "<subjct>")
    assert instruction.control == ("<|a|>", "<|b|>", "<|a|>")


# Round trips ----------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(texts, st.sampled_from([None, 0, 1, 2, 5]))
@example("<image<image_1>_1>", None)
@example("<<style>style>", 1)
@example("<|<image>im_end|>", 2)
def test_parts_read_back_as_they_are_written(text: str, pictures: int | None) -> None:
    instruction = parse(text, references=pictures)
    again = parse(render(instruction))
    assert again.parts == instruction.parts
    assert again.unknown == instruction.unknown
    assert again.control == instruction.control


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(texts, st.sampled_from([None, 0, 1, 2, 5]), st.sampled_from([None, 1, 3]))
def test_the_canonical_spelling_exists_for_any_text_and_is_final(
    text: str, pictures: int | None, later: int | None
) -> None:
    once = canonical(text, references=pictures)
    assert once == render(parse(text, references=pictures))
    assert canonical(once, references=later) == once


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(texts)
def test_nothing_but_tags_is_changed(text: str) -> None:
    """The text is its text parts, to the letter and in order, with tags between them."""
    parts = [re.escape(part.text) if isinstance(part, Text) else "<[^<>]*>" for part in parse(text).parts]
    assert re.fullmatch("".join(parts), text)


nasty_parts = st.lists(
    st.one_of(
        texts.map(Text),
        st.sampled_from(ATTRIBUTES).map(Attribute),
        st.integers(0, 12).map(Placeholder),
        st.sampled_from([Attribute("identity"), Attribute("foo"), Placeholder(-1), Placeholder(10**9), Text("")]),
    ),
    max_size=6,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(nasty_parts)
@example([Text("<image_1>")])
@example([Text("a"), Text("b")])
def test_render_writes_what_reads_back_and_refuses_the_rest(parts: list[Part]) -> None:
    try:
        text = render(parts)
    except ValueError:
        return
    assert parse(text).parts == tuple(parts)


@pytest.mark.parametrize(
    "parts",
    [
        [Text("<style>")],
        [Text("look at <image 1>")],
        [Text("")],
        [Text("a"), Text("b")],
        [Attribute("identity")],
        [Attribute("colour")],
        [Placeholder(-1)],
        [Placeholder(10_000_000)],
    ],
)
def test_render_refuses_parts_that_would_not_read_back(parts: list[Part]) -> None:
    with pytest.raises(ValueError, match="round-trip"):
        render(parts)


# Groups ---------------------------------------------------------------------------------------------


def naive_groups(parts: tuple[Part, ...], before: tuple[int, ...], bindings: dict[int, int]) -> tuple[int | None, ...]:
    """The rule word by word: explicit binding, else the next placeholder, else the last one before."""
    found: list[int | None] = []
    for place, part in enumerate(parts):
        if not isinstance(part, Attribute):
            continue
        behind = [other.number for other in parts[place + 1 :] if isinstance(other, Placeholder)]
        ahead = [*before, *(other.number for other in parts[:place] if isinstance(other, Placeholder))]
        if len(found) in bindings:
            found.append(bindings[len(found)])
        elif behind:
            found.append(behind[0])
        else:
            found.append(ahead[-1] if ahead else None)
    return tuple(found)


tagged = st.lists(
    st.one_of(
        st.just(Text(" x ")), st.sampled_from(ATTRIBUTES).map(Attribute), st.integers(0, 5).map(Placeholder)
    ),
    max_size=10,
)  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    tagged, st.lists(st.integers(1, 5), max_size=3), st.dictionaries(st.integers(-1, 8), st.integers(1, 9), max_size=3)
)
def test_groups_follow_the_rule(parts: list[Part], before: list[int], bindings: dict[int, int]) -> None:
    instruction = Instruction(tuple(parts))
    assert instruction.groups(before=before, bindings=bindings) == naive_groups(tuple(parts), tuple(before), bindings)


def test_groups_of_one_sentence_with_and_without_pictures_before_it() -> None:
    text = parse("<style>a <image_2> <id>b <image_1> <pose>c <text>d")
    assert text.groups() == (2, 1, 1, 1)
    assert text.groups(bindings={1: 7}) == (2, 7, 1, 1)
    assert parse("<style>like this").groups() == (None,)
    assert parse("<style>like this").groups(before=[4, 9]) == (9,)


# Renumbering ----------------------------------------------------------------------------------------


def test_renumber_changes_listed_numbers_only_and_all_at_once() -> None:
    assert (
        renumber("<style>a <image 1> b <Image 2> <image_3>", {1: 2, 2: 1}) == "<style>a <image_2> b <image_1> <image_3>"
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(texts, st.permutations([1, 2, 3, 4]))
def test_renumbering_back_gives_the_canonical_text(text: str, order: list[int]) -> None:
    there = dict(zip([1, 2, 3, 4], order, strict=True))
    back = {new: old for old, new in there.items()}
    assert renumber(renumber(text, there), back) == canonical(text)


def test_plain_is_the_words_alone() -> None:
    assert parse("  Isolate <select> the  dog\nin <Image>. ", references=1).plain == "Isolate the dog in ."
    assert parse("<style><image_1>").plain == ""
