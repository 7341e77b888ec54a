"""Injection by rules: what takes a token and what does not, bindings, frames, refusals; over any caption the contract."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.injection import Injection, Reference, Request, contract, inject
from sigma_data.injection.frames import templates, variants
from sigma_data.injection.rules import all_frames
from sigma_data.instruction import parse
from sigma_data.sample import Family


def request(caption: str, count: int = 1, family: str = "editing", **given: Any) -> Request:
    kinds, labels = given.pop("kinds", [None] * count), given.pop("labels", [None] * count)
    references = tuple(Reference(n, kinds[n - 1], labels[n - 1]) for n in range(1, count + 1))
    return Request(Family(family), caption, references, **given)


def one(caption: str, family: str = "editing", **given: Any) -> str:
    return inject(request(caption, 1, family, **given)).instruction


def several(caption: str, count: int = 2, family: str = "compositional", **given: Any) -> Injection:
    return inject(request(caption, count, family, **given))


@pytest.mark.parametrize(
    ("caption", "instruction"),
    [
        ("Add a scarf to the boy", "Add a scarf to the <id>boy <image_1>"),
        ("Make the horse jump", "Make the <subject>horse <image_1> jump"),
        ("Replace sports car with a van", "Replace <subject>sports car <image_1> with a van"),
        ("Change the backdrop to a forest.", "Change the <background>backdrop of <image_1> to a forest."),
        ("Change the weather to rain", "Change the <environment>weather of <image_1> to rain"),
        ("Blur the background behind the girl", "Blur the <background>background behind the <id>girl <image_1>"),
        ("Remove the kite from the photo.", "Remove the <subject>kite from the photo <image_1>."),
        ("Change the woman's dress to red", "Change the woman's <clothing>dress <image_1> to red"),
        ("Add a bird in the sky", "Add a bird in the <background>sky of <image_1>"),
        ("Make the man wear glasses", "Make the <id>man <image_1> wear glasses"),
        ("Turn it into a mosaic", "Turn <image_1> into a mosaic"),
        ("Flip the image upside down", "Flip the image <image_1> upside down"),
        ("Zoom out.", "Zoom out <image_1>."),
        ("Make the dogs in <Image> smile", "Make the <subject>dogs in <image_1> smile"),
        ("把狗变成猫。", "把狗变成猫 <image_1>。"),
        ("Make the dog look at the camera", "Make the <subject>dog <image_1> look at the camera"),
        ("Put the same hat on the dog", "Put the same hat on the <subject>dog <image_1>"),
        ("Change the color of the car.Make it blue", "Change the color of the <subject>car.Make it blue <image_1>"),
        ("Give the lady sunglasses", "Give the <id>lady <image_1> sunglasses"),
        (
            "Change the overall style of the photo to comic",
            "Change the <style>overall style of the photo <image_1> to comic",
        ),
    ],
)
def test_a_caption_with_one_reference(caption: str, instruction: str) -> None:
    assert one(caption) == instruction


@pytest.mark.parametrize(
    "caption",
    [
        "Put Ferrari logos here",  # G1: new
        "Add a soft, warm light",
        "Enhance details such as lighting",
        "Make the car seat darker",  # G2: not the head of its compound
        "Make the tree line clearer",
        "Change the dog's fur color to black",  # G3: an owner
        "Put a hat on the dog(s)",
        "Show a tower in the background",  # G4: a place
        "Improve the image quality",
        "Turn it into a watercolor painting",  # step C: what the edit makes
        'Write "the man" here',  # quoted
        "Put a hat on the person (s)",
        "Clean the car window",  # a part of what is named before it
        "Apply the Ghibli style to the photo",  # a style that no image shows
        "Turn the photo of Marie Curie into a sketch",  # no reference is known to show a person
    ],
)
def test_what_is_new_vague_or_not_the_head_takes_no_token(caption: str) -> None:
    found = inject(request(caption))
    assert not found.refused
    assert found.phrases == ()
    assert "<image_1>" in found.instruction


def test_what_a_thing_is_exchanged_for_takes_no_token() -> None:
    assert one("Replace the dog with the cat") == "Replace the <subject>dog <image_1> with the cat"


def test_one_reference_has_at_most_two_tokens() -> None:
    assert len(inject(request("Remove the cat, the dog and the bird, then the car")).phrases) == 2


@pytest.mark.parametrize(
    ("caption", "count", "instruction"),
    [
        (
            "Put the dog of the second picture on the chair of the first picture", 2,
            "Put the <subject>dog of the second picture <image_2> on the <subject>chair of the first picture <image_1>",
        ),
        (
            "The girl from <image_1> holds the umbrella from <Image 2>", 2,
            "The <id>girl from <image_1> holds the <subject>umbrella from <image_2>",
        ),
        (
            "Put the objects of the second and the third picture into the scene of the first picture", 3,
            "Put the <subject>objects of the second <image_2> and the third picture <image_3> into the "
            "<environment>scene of the first picture <image_1>",
        ),
        ("Place the thing of <image_2> in <image_1>", 2, "Place the thing of <image_2> in <image_1>"),
        (
            "Replace garden gnome with the reference image.", 2,
            "Replace <subject>garden gnome <image_1> with the <subject>reference image <image_2>.",
        ),
        (
            "Position kangaroo in <Image 2> and woman with brown hair from <Image_1>.", 2,
            "Position <subject>kangaroo in <image_2> and <id>woman with brown hair from <image_1>.",
        ),
        (
            "Put the hat of image #2 on the man in the other picture", 2,
            "Put the <clothing>hat of image #2 <image_2> on the <id>man in the other picture <image_1>",
        ),
        (
            "Put the gizmo from the last image on the table in the 1st image", 2,
            "Put the <subject>gizmo from the last image <image_2> on the <subject>table in the 1st image <image_1>",
        ),
        (
            "Put the dogs of images 2 and 3 on the sofa of image 1", 3,
            "Put the <subject>dogs of images 2 <image_2> and 3 <image_3> on the <subject>sofa of image 1 <image_1>",
        ),
        (
            "Put the hat of the first picture on the man of the second.", 2,
            "Put the <clothing>hat of the first picture <image_1> on the <id>man of the second <image_2>.",
        ),
        (
            "The first picture's girl wears the hat of the last picture", 2,
            "The first picture's <id>girl <image_1> wears the <clothing>hat of the last picture <image_2>",
        ),
        (
            "As the change from <image_1> to style reference <image_2>, transform the photo <image_3>", 3,
            "As the change from <image_1> to style reference <image_2>, transform the photo <image_3>",
        ),
        (
            "Stylize the second image using the first image as style reference", 2,
            "Stylize the second image <image_2> using the first image <image_1> as style reference",
        ),
        (
            "Put the dog in image 1 and 2 cats on the sofa of image 2", 2,
            "Put the <subject>dog in image 1 <image_1> and 2 cats on the <subject>sofa of image 2 <image_2>",
        ),
        (
            "Put the first picture's dog on the beach of the second picture", 2,
            "Put the first picture's <subject>dog <image_1> on the <background>beach of the second picture <image_2>",
        ),
    ],
)  # fmt: skip
def test_a_caption_that_names_its_references(caption: str, count: int, instruction: str) -> None:
    assert several(caption, count).instruction == instruction


@pytest.mark.parametrize(
    ("caption", "labels", "instruction"),
    [
        ("Turn the photo of Marie Curie into a sketch", ["woman"],
         "Turn the photo of <id>Marie Curie <image_1> into a sketch"),
        ("Change the hair of Marie Curie to red", ["Marie Curie"],
         "Change the hair of <id>Marie Curie <image_1> to red"),
        ("Make the portrait of Marie Curie older", ["woman"], "Make the <id>portrait <image_1> of Marie Curie older"),
        ("Change the skyline of New York", ["man"], "Change the skyline of New York <image_1>"),
        ("Add a photo of Marie Curie to the wall", ["man"], "Add a photo of Marie Curie to the wall <image_1>"),
        ("The smile of Ann Stone from image 1 on the dog of image 2", ["a woman", None],
         "The <emotion>smile of <id>Ann Stone from image 1 <image_1> on the <subject>dog of image 2 <image_2>"),
        ("The portrait of Ann Stone from image 1 in the room of image 2", [None, None],
         "The <id>portrait of Ann Stone from image 1 <image_1> in the <background>room of image 2 <image_2>"),
        ("The dog and the cat play", ["a brown dog", "cat"],
         "The <subject>dog <image_1> and the <subject>cat <image_2> play"),
    ],
)  # fmt: skip
def test_a_name_in_capitals_is_a_person_where_a_reference_shows_one(
    caption: str, labels: list[str | None], instruction: str
) -> None:
    found = inject(request(caption, len(labels), "editing" if len(labels) == 1 else "compositional", labels=labels))
    assert found.instruction == instruction


def test_the_photo_is_the_only_reference_that_nothing_else_names() -> None:
    found = several("Render the photo in the style of the second picture", family="stylization", kinds=[None, "style"])
    assert found.instruction == "Render the photo <image_1> in the <style>style of the second picture <image_2>"
    assert several("Apply the given style to the image", family="stylization", kinds=["style", None]).instruction == (
        "Apply the <style>given style of <image_1> to the image <image_2>"
    )


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("A dream of two things", "unbound_reference"),
        ("put it into the scene of the first picture", "unbound_reference"),  # G9
        ("Put the hat of the fifth picture on <image_1>", "image_range"),
        ("Put <image_7> on <image_1>", "image_range"),
        ("把第二张图的狗放到第一张图里", "unbound_reference"),
        ("Put <|im_end|> on <image_1> and <image_2>", "control_token"),
        ("  ", "no_words"),
        ("... !", "no_words"),
        ("a " * 9_000, "too_long"),
    ],
)
def test_what_cannot_be_bound_or_read_is_refused_and_stays_as_it_is(caption: str, code: str) -> None:
    found = several(caption)
    assert (found.outcome, found.code, found.instruction) == ("refused", code, caption)
    assert found.message


@pytest.mark.parametrize("caption", ['Change the sign to "<style> shop"', "Make <id> red", "Make <b>it</b> red"])
def test_text_that_reads_as_a_token_is_refused_and_never_stripped(caption: str) -> None:
    found = inject(request(caption))
    assert (found.code, found.instruction) == ("token_in_text", caption)


def test_an_instruction_that_has_its_tokens_keeps_them() -> None:
    shipped = "Isolate <select> the first person from the left in <Image>."
    assert one(shipped, "selective") == "Isolate <select> the first person from the left in <image_1>."
    assert one("Make the <subject>dog smile.", injected=True) == "Make the <subject>dog smile <image_1>."


@pytest.mark.parametrize(
    ("caption", "instruction"),
    [
        ("Extract the red car from the image.", "Extract <select>the red car from the image <image_1>."),
        ("Isolate the dog and place it on white", "Isolate <select>the dog in <image_1> and place it on white"),
        ("Cut out the man on a white background", "Cut out <select>the man in <image_1> on a white background"),
        ("Extract the cup in <image_1>", "Extract <select>the cup in <image_1>"),
        ("Extract: the cup", "Extract: <select>the cup in <image_1>"),
    ],
)
def test_an_instruction_to_extract_is_selective_whatever_corpus_it_comes_from(caption: str, instruction: str) -> None:
    found = inject(request(caption))
    assert (found.instruction, found.family) == (instruction, Family.SELECTIVE)
    assert found.phrases[0].token == "select"


@pytest.mark.parametrize(
    ("caption", "instruction"),
    [
        ("Cut the dog out of the picture", "Cut <select>the dog out of the picture <image_1>"),
        ("Extract.", "Extract <image_1>."),
        ("Remove the background", "Remove the <background>background of <image_1>"),
        ("Take the dog out for a walk", "Take the <subject>dog <image_1> out for a walk"),
    ],
)
def test_captions_of_the_selective_family(caption: str, instruction: str) -> None:
    assert one(caption, "selective") == instruction


@pytest.mark.parametrize("kind", ["layout", "relation", "selective", "subjects"])
def test_a_family_has_at_least_eight_frames_and_the_key_draws_among_them(kind: str) -> None:
    assert all(len(set(templates(kind, variant))) >= 8 for variant in variants(kind))
    asked: dict[str, Any] = {
        "layout": {"kinds": ["canny"]},
        "relation": {"count": 3},
        "selective": {},
        "subjects": {"labels": ["teapot"]},
    }[kind]
    family = "compositional" if kind == "subjects" else kind
    drawn = {
        inject(request("a red car on a bridge", family=family, key=f"key-{number}", **asked)).instruction
        for number in range(200)
    }
    assert len(drawn) >= 8
    assert all(not parse(text).unknown and parse(text).attributes for text in drawn)


def test_frames_name_the_reference_and_its_attribute() -> None:
    canny = inject(request("a red car", family="layout", kinds=["canny"]))
    assert [(p.token, p.image, p.in_frame) for p in canny.phrases] == [("layout", 1, True)]
    assert canny.instruction.endswith("a red car")
    assert "edge map" in canny.phrases[0].text
    relation = inject(request("Turn it into a sketch", 3, "relation"))
    assert [(p.token, p.image) for p in relation.phrases] == [("style", 2)]
    assert set(parse(relation.instruction).placeholders) == {1, 2, 3}
    subject = inject(request("On a beach.", family="compositional", labels=["teapot"]))
    assert [(p.text, p.token) for p in subject.phrases] == [("teapot", "subject")]


def test_families_without_tokens_are_left_alone() -> None:
    for family in ("segmentation", "understanding"):
        assert one("Colour the man", family) == "Colour the man"
    assert inject(request("a red car", 0, "layout")).outcome == "kept"


_VOCABULARY = """
the a dog cat man woman's it image picture photo first second third of in from with to into and replace make add remove
Extract isolate background style lighting sky reference <image_1> <image> <style> <id> "shop" ' " . , ! ( (s) 's smile
red 把图片 2 #1 other last one given <b> <|im_end|> wearing hat scene on view <image_9> “x” turn let wall left as this
"""
_WORDS = [*_VOCABULARY.split(), "<Image 2>", "\n"]
_CAPTIONS = st.lists(st.sampled_from(_WORDS), max_size=14).map(" ".join) | st.text(max_size=40)
_KINDS = st.sampled_from([None, "style", "canny", "background"])
_LABELS = st.sampled_from([None, "dog", "red hat", "<id>", " "])


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(_CAPTIONS, st.lists(st.tuples(_KINDS, _LABELS), min_size=1, max_size=3), st.sampled_from(Family), st.booleans())
def test_any_caption_keeps_the_contract_and_stays_when_injected_again(
    caption: str, images: list[tuple[str | None, str | None]], family: Family, injected: bool
) -> None:
    references = tuple(Reference(number, kind, label) for number, (kind, label) in enumerate(images, start=1))
    asked = Request(family, caption, references, key="k", injected=injected)
    found = inject(asked)
    assert found == inject(asked)
    if found.refused or family in (Family.SEGMENTATION, Family.UNDERSTANDING):
        assert found.instruction == caption
        return
    if not parse(caption, references=len(references)).attributes:
        routed = Request(found.family, caption, references, key="k")
        problem = contract.check(
            found.instruction, routed, frames=all_frames(routed), phrases=found.phrases, bindings=found.bindings
        )
        assert problem is None
    again = inject(Request(found.family, found.instruction, references, key="other", injected=injected))
    assert (again.instruction, again.refused) == (found.instruction, False)
