"""Placeholders and attribute tokens in other tools' spellings: read where there is no doubt, reported where there is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.image_files import image_bytes

from sigma_data.corpus import foreign_spellings
from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.checks import examine
from sigma_data.corpus.foreign_spellings import leftovers, settle
from sigma_data.instruction import ATTRIBUTES, canonical, parse
from sigma_data.sample import Family, Image, Sample, Source, Turn
from tests.sigma_data.test_instruction import ORDINARY, texts


def read(text: str, images: int = 2) -> str:
    """The instruction as a source stores it."""
    return canonical(settle(text, images), references=images)


def noticed(text: str) -> tuple[str, ...]:
    """What is reported of a stored instruction, as an error or as a warning."""
    instruction = parse(text)
    return (*instruction.unknown, *instruction.control, *leftovers(instruction))


NUMBERED = [
    "<img><|image_{}|></img>", "<img> <|image_{}|> </img>", "<img><image_{}></img>", "＜img＞<|image_{}|>＜/img＞",
    "<|image_{}|>", "&lt;image_{}&gt;", "&LT;Image {}&GT;", "&amp;lt;image_{}&amp;gt;", "&#60;image_{}&#62;",
    "&#x3c;image_{}&#x3E;", "&lt;img&gt;&lt;|image_{}|&gt;&lt;/img&gt;", "＜image_{}＞", "＜ｉｍａｇｅ＿{}＞", "《image_{}》",
    "⟨image_{}⟩", "<ｉｍａｇｅ_{}>", "\\<image\\_{}\\>", "<image\\_{}>", "\\u003cimage_{}\\u003e", "%3Cimage_{}%3E",
    "[image_{}]", "[Image {}]", "[IMAGE{}]", "[[image_{}]]", "{{image_{}}}", "{{{{image_{}}}}}", "\\[image\\_{}\\]",
    "【image_{}】", "［image_{}］", "｛image_{}｝", "【图{}】", "[img_{}]", "[picture {}]", "<img{}>", "<img_{}>",
    "<IMG {}>", "<image-{}>", "<image #{}>", "<image:{}>", "<image_0{}>", "<image_{}/>", "<image_{} />", "<picture_{}>",
    "<photo {}>", "<图片{}>", "<图{}>", "<ref_{}>", "<reference image {}>", "<input_image_{}>", "<image\u200b_{}>",
    "<\ufeffimage_{}>", "<image\u00a0{}>", "< image_{} >", "<Image_{}>",
]  # fmt: skip


OURS = ("< image_{} >", "<Image_{}>", "<image_0{}>", "<img><image_{}></img>")
"""Read by `parse` whatever the number, so that a wrong one is the error it always was."""


@pytest.mark.parametrize("form", NUMBERED)
@pytest.mark.parametrize("around", ["the cat of {} beside the dog of {}.", "把{}的猫放到{}的旁边", "cat{} and dog{}"])
def test_every_spelling_of_a_placeholder_is_read_where_its_number_is_in_range(form: str, around: str) -> None:
    text = around.format(form.format(2), form.format(1))
    assert read(text) == around.format("<image_2>", "<image_1>")
    assert noticed(read(text)) == ()


@pytest.mark.parametrize("form", NUMBERED)
def test_a_full_width_number_is_a_number(form: str) -> None:
    assert parse(read(form.format("２"))).placeholders == (2,)


@pytest.mark.parametrize("form", [form for form in NUMBERED if form not in OURS])
@pytest.mark.parametrize("numbers", [(0, 1), (1, 3), (7, 8)])
def test_numbers_out_of_range_leave_all_of_them_as_they_are_and_are_reported(
    form: str, numbers: tuple[int, int]
) -> None:
    """Counting from 0 must not be taken for counting from 1."""
    text = f"the cat of {form.format(numbers[0])} beside the dog of {form.format(numbers[1])}"
    assert read(text) == text
    assert len(noticed(text)) >= 2


@pytest.mark.parametrize("name", [*ATTRIBUTES, "identity"])
@pytest.mark.parametrize("form", ["&lt;{}&gt;", "＜{}＞", "&#60;{}&#62;", "\\<{}\\>", "〈{}〉", "\\u003c{}\\u003e"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_every_spelling_of_an_attribute_token_is_read(name: str, form: str, case: object) -> None:
    assert callable(case)
    wanted = "id" if name == "identity" else name
    assert read(f"the {form.format(case(name))}cat of <image_1>") == f"the <{wanted}>cat of <image_1>"


def test_full_width_letters_of_a_token_are_read() -> None:
    assert read("＜ＳＴＹＬＥ＞a <ｓｔｙｌｅ>b <sty\u200ble>c") == "<style>a <style>b <style>c"


@pytest.mark.parametrize("form", ["&lt;image&gt;", "＜image＞", "＜Image＞", "\\<image\\>"])
def test_a_bare_placeholder_counts_as_ours_does(form: str) -> None:
    assert read(f"{form} and {form}") == "<image_1> and <image_2>"
    assert read(f"{form} and {form}", images=1) == "<image_1> and <image_1>"


UNTOUCHED = [
    "image 1", "Image 1 and image 2", "[1]", "[1, 2]", "{1}", "(image 1)", "the first image", "[ref 1]", "image1.jpg",
    "write image_1.jpg below", "[image 1](https://example.org)", "5 < image 1 and 2 > 1",
    "&lt;b&gt;bold&lt;/b&gt;", "5 &lt; 6 &gt; 3", "a 【note】", "《红楼梦》", "{name}", "[caption]", "%3Cb%3E", "＜b＞",
    "图1中的猫", "List&lt;int&gt;", "<|> [] {} <> ＜＞", "the picture 2 of 3", "see [12] and {3}",
]  # fmt: skip


@pytest.mark.parametrize("text", [*UNTOUCHED, *ORDINARY])
def test_ordinary_text_stays_to_the_letter_and_is_not_reported(text: str) -> None:
    assert settle(text, 3) == text
    assert leftovers(parse(text)) == (() if text != "image 1, image_2" else ("image_2",))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<image_1> shows the words [image_2]", "[image_2]"),  # other brackets beside ours may be meant literally
        ("Put [image_1] on [image_9]", "[image_9]"),
        ("image_1 beside image_2", "image_2"),
        ("@image1 beside @Image2", "@image1"),
        ("the [style] of <image_1>", "[style]"),
        ("the {subject} of <image_1>", "{subject}"),
        ("a &lt;style&gt;b&lt;/style&gt; of <image_1>", "&lt;/style&gt;"),
        ("<image_1></image_1>", "</image_1>"),
        ("[image] beside <image_1>", "[image]"),
    ],
)
def test_what_is_not_unambiguous_stays_and_is_a_warning(text: str, word: str) -> None:
    stored = read(text)
    assert word in leftovers(parse(stored))
    images = (Image(1, image_bytes(seed=1)), Image(2, image_bytes(seed=2)), Image(3, image_bytes(seed=3)))
    sample = Sample("a" * 20, Family.COMPOSITIONAL, images, (Turn(stored, target=3),), Source("s", "f", 0))
    assert "unread_placeholder" in {finding.code for finding in examine(sample, Limits()).warnings}


foreign = st.lists(
    st.one_of(
        st.sampled_from(NUMBERED).flatmap(lambda form: st.integers(0, 4).map(form.format)),
        st.sampled_from(["&lt;", "&gt;", "＜", "＞", "[", "]", "{", "}", "\\", "|", "/", "&amp;", "image_1", "style"]),
        texts,
    ),
    max_size=6,
).map("".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(foreign, st.integers(0, 4))
@example("[image_1][image_2]", 2)
@example("&lt;image_1&gt;[image_1]", 1)
@example("\\＜img＞<|image_1|>＜/img＞", 1)
@example("\\\\\\<|image_1|>", 1)
def test_what_is_settled_stays_settled_and_reads_back(text: str, images: int) -> None:
    """A corpus that is exported and built again has the same words."""
    once = read(text, images)
    assert read(once, images) == once
    again = parse(once, references=images)
    assert parse(canonical(once), references=images).parts == again.parts


@settings(deadline=None, max_examples=200)
@given(
    st.text(alphabet=st.characters(exclude_characters="<>[]{}&\\%＜＞﹤﹥〈〉⟨⟩‹›《》［］【】〔〕｛｝")),
    st.integers(0, 4),
)
def test_text_without_brackets_is_untouched(text: str, images: int) -> None:
    assert settle(text, images) == text


def test_every_bracket_that_opens_a_word_is_looked_for() -> None:
    opens = re.compile(rf"{foreign_spellings._ANGLE_OPEN}|{foreign_spellings._OTHER_OPEN}", re.IGNORECASE)
    begins = ["&lt;", "&amp;lt;", "&#60;", "&#x3C;", "%3C", "\\u003C", "\\<", "\\["]
    for sign in [*map(chr, range(0x110000)), *begins]:
        if opens.match(sign):
            assert foreign_spellings._OPENS.search(sign), sign
