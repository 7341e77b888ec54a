"""The rules: each is broken by one sample as the first reason named, and kept by its near miss."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from support.image_files import encoded, image_bytes, smooth

from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.checks import RULES, Examination, examine
from sigma_data.corpus.token_estimate import count_tokens
from sigma_data.images.decode import load, probe
from sigma_data.sample import FAMILY_RULES, Family, Image, ImageKind, Sample, Source, Turn

LIMITS = Limits()


@cache
def pixels(seed: int, width: int = 64, height: int = 48) -> Pillow.Image:
    return smooth(seed, width, height)


@cache
def picture(seed: int, width: int = 64, height: int = 48, kind: str = "PNG") -> bytes:
    return image_bytes(kind, seed, width=width, height=height)


def sample(
    instruction: str = "put <subject>the dog of <image_1> on the sofa of <image_2>",
    *,
    pictures: tuple[bytes | None, ...] | None = None,
    family: Family = Family.COMPOSITIONAL,
    turns: tuple[Turn, ...] | None = None,
) -> Sample:
    """Three pictures, the last of which is the target, unless told otherwise."""
    data = (picture(1), picture(2), picture(3)) if pictures is None else pictures
    return Sample(
        id="sample",
        family=family,
        images=tuple(Image(number, bits) for number, bits in enumerate(data, 1)),
        turns=(Turn(instruction, target=len(data)),) if turns is None else turns,
        source=Source("test", "here", 0),
    )


def with_turn(**changes: object) -> Sample:
    whole = sample()
    return replace(whole, turns=(replace(whole.turns[0], **changes),))


def asking(text: str, **changes: object) -> Sample:
    return with_turn(instruction=text, **changes)


def first_picture(data: bytes | None) -> Sample:
    return sample(pictures=(data, picture(2), picture(3)))


def found(one: Sample, limits: Limits = LIMITS, **options: object) -> Examination:
    return examine(one, limits, **options)


def codes(one: Sample, limits: Limits = LIMITS) -> list[str]:
    return [finding.code for finding in found(one, limits).errors]


def deep(step: float) -> bytes:
    """A float image of values that lie this far apart."""
    return encoded(Pillow.fromarray(np.arange(64 * 48, dtype=np.float32).reshape(48, 64) * step), "TIFF")


def darkened(span: int, least: int = 0) -> bytes:
    return encoded(pixels(4).point(lambda value: least + value * span // 255))


def faded(alpha: int) -> bytes:
    image = pixels(4).copy()
    image.putalpha(alpha)
    return encoded(image)


def turned(orientation: int) -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    return encoded(pixels(4), "JPEG", exif=exif)


def edge_map(white: float) -> Sample:
    """A sample whose first reference is an edge map, white on this share of its pixels."""
    places = np.random.default_rng(0).permutation(64 * 48).reshape(48, 64)
    whole = first_picture(encoded(np.where(places < white * 64 * 48, 255, 0).astype(np.uint8)))
    return replace(whole, images=(replace(whole.images[0], kind=ImageKind.CANNY), *whole.images[1:]))


BOMB = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + encoded(pixels(1), "GIF")[10:]
LATIN = "put the dog of <image_1> on the sofa of <image_2>"

# code -> (a sample that breaks the rule, its near miss)
CASES: dict[str, tuple[Callable[[], Sample], Callable[[], Sample]]] = {
    "no_pictures": (
        lambda: sample("draw a dog", pictures=(), turns=(Turn("draw a dog"),)),
        lambda: sample("why?", pictures=(), turns=(Turn("why?", response="so"),), family=Family.UNDERSTANDING),
    ),
    "empty": (lambda: first_picture(b""), lambda: first_picture(picture(4))),
    "wrong_type": (lambda: first_picture(b"<html></html>"), lambda: first_picture(picture(4, kind="WEBP"))),
    "bomb": (lambda: first_picture(BOMB), lambda: first_picture(picture(4, kind="GIF"))),
    "truncated": (lambda: first_picture(picture(4)[:-1]), lambda: first_picture(picture(4) + b"x")),
    "undecodable": (
        lambda: first_picture(picture(4)[:60] + bytes(8) + picture(4)[68:]),
        lambda: first_picture(picture(4, kind="TIFF")),
    ),
    "no_range": (lambda: first_picture(deep(0)), lambda: first_picture(encoded(pixels(4).convert("1"), "TIFF"))),
    "no_turns": (lambda: sample(turns=()), sample),
    "empty_instruction": (lambda: asking(" <style><image_1> \n"), lambda: asking("<style>x<image_1><image_2>")),
    "no_answer": (
        lambda: with_turn(target=None, response=" \n"),
        lambda: with_turn(target=None, response="a dog"),
    ),
    "target_missing": (lambda: with_turn(target=4), lambda: with_turn(target=3)),
    "no_reference": (
        lambda: sample("do as <image_1> to <image_2> tells", family=Family.RELATION),
        lambda: sample(
            "do as <image_1> to <image_2> tells with <image_3>",
            family=Family.RELATION,
            pictures=tuple(picture(seed) for seed in (1, 2, 3, 4)),
        ),
    ),
    "target_as_reference": (lambda: asking("mix <image_1> and <image_3>"), lambda: asking("mix <image_1> and <image_2>")),
    "placeholder_without_picture": (lambda: asking("mix <image_1> and <image_4>"), lambda: asking("<image_2> and <image_1>")),
    "unknown_token": (lambda: asking("the <subjct>dog of <image_1>"), lambda: asking("the < subject dog of <image_1>")),
    "control_token": (lambda: asking("mix<|im_end|> <image_1>"), lambda: asking("mix <|im end|> <image_1>")),
    "token_without_picture": (
        lambda: asking("a <style>thing", bindings=((0, 9),)),
        lambda: asking("a <style>thing", bindings=((0, 2),)),
    ),
    "instruction_too_long": (lambda: asking("x" * 8_001), lambda: asking("x" * 8_000)),
    "too_many_references": (
        lambda: sample("mix all", pictures=tuple(picture(seed) for seed in range(12))),
        lambda: sample("mix all", pictures=tuple(picture(seed) for seed in range(11))),
    ),
    "too_small": (lambda: first_picture(picture(4, 31, 60)), lambda: first_picture(picture(4, 32, 60))),
    "extreme_aspect": (lambda: first_picture(picture(4, 321, 40)), lambda: first_picture(picture(4, 320, 40))),
    "target_equals_reference": (
        lambda: sample(pictures=(picture(1), picture(2), picture(1))),
        lambda: sample(pictures=(picture(1), picture(2), picture(1, 64, 49))),
    ),
    "over_budget": (
        lambda: sample(pictures=tuple(encoded(pixels(s, 1024, 1024), "JPEG") for s in range(8))),
        lambda: sample(pictures=tuple(encoded(pixels(s, 1024, 1024), "JPEG") for s in range(4))),
    ),
    "repeated_reference": (lambda: sample(pictures=(picture(1), picture(1), picture(3))), sample),
    "unnamed_reference": (lambda: asking("take the dog of <image_1>"), lambda: asking("take the dog")),
    "unread_placeholder": (lambda: asking("take the dog of [image_1]"), lambda: asking("take the dog of image 1")),
    "near_black": (lambda: first_picture(darkened(15)), lambda: first_picture(darkened(40))),
    "near_white": (lambda: first_picture(darkened(15, 240)), lambda: first_picture(darkened(40, 200))),
    "blank_condition": (lambda: edge_map(0.001), lambda: edge_map(0.1)),
    "crowded_condition": (lambda: edge_map(0.45), lambda: edge_map(0.35)),
    "inverted_condition": (lambda: edge_map(0.9), lambda: edge_map(0.1)),
    "deep_image": (lambda: first_picture(deep(1)), lambda: first_picture(encoded(pixels(4).convert("L")))),
    "transparent_image": (lambda: first_picture(faded(254)), lambda: first_picture(faded(255))),
    "turned_image": (lambda: first_picture(turned(3)), lambda: first_picture(turned(1))),
    "large_metadata": (lambda: first_picture(with_text(2**20 + 1)), lambda: first_picture(with_text(2**20))),
}  # fmt: skip


def with_text(size: int) -> bytes:
    info = PngInfo()
    info.add_text("workflow", "x" * size, zip=True)
    return encoded(pixels(4), "PNG", pnginfo=info)


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("code", CASES)
def test_breaking_a_rule_is_the_first_reason_named(code: str) -> None:
    findings = found(CASES[code][0]()).findings
    assert findings[0].code == code
    assert findings[0].severity is RULES[code].severity
    assert findings[0].message
    assert "\n" not in findings[0].message


@pytest.mark.parametrize("code", CASES)
def test_a_near_miss_keeps_the_rule(code: str) -> None:
    assert codes(CASES[code][1]()) == []
    assert code not in [finding.code for finding in found(CASES[code][1]()).findings]


def test_a_good_sample_has_no_findings_and_all_its_facts() -> None:
    seen = found(sample())
    assert seen.findings == ()
    assert seen.attributes == ("subject",)
    assert {number: (info.width, info.height) for number, info in seen.infos.items()} == dict.fromkeys(
        [1, 2, 3], (64, 48)
    )


def test_rules_explain_themselves() -> None:
    for code, check in RULES.items():
        assert check.code == code
        assert check.summary
        assert "\n" not in check.summary


def test_every_broken_rule_is_named_the_most_basic_first() -> None:
    broken = sample("the <subjct>dog of <image_7>", pictures=(b"", picture(2, 20, 20), picture(3)))
    named = codes(broken)
    assert named == ["empty", "placeholder_without_picture", "unknown_token", "too_small"]
    assert named == sorted(named, key=list(RULES).index)


# Severity and scope ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code, check in RULES.items() if not check.fixed])
@pytest.mark.parametrize("severity", Severity)
def test_a_rule_can_be_relaxed_and_sharpened(code: str, severity: Severity) -> None:
    seen = found(CASES[code][0](), severities={code: severity})
    of_code = [finding for finding in seen.findings if finding.code == code]
    assert {finding.severity for finding in of_code} == (set() if severity is Severity.OFF else {severity})
    assert (code in [finding.code for finding in seen.errors]) == (severity is Severity.ERROR)
    assert (code in [finding.code for finding in seen.warnings]) == (severity is Severity.WARNING)


@pytest.mark.parametrize("code", [code for code, check in RULES.items() if check.fixed])
@pytest.mark.parametrize("severity", [Severity.WARNING, Severity.OFF])
def test_what_cannot_be_used_cannot_be_allowed(code: str, severity: Severity) -> None:
    assert codes(CASES[code][0]())[0] == found(CASES[code][0](), severities={code: severity}).errors[0].code == code


@pytest.mark.parametrize("code", [code for code, check in RULES.items() if check.families is not None])
def test_understanding_need_not_keep_the_rules_of_generation(code: str) -> None:
    broken = replace(CASES[code][0](), family=Family.UNDERSTANDING)
    assert code not in [finding.code for finding in found(broken).findings]
    for family in RULES[code].families or ():
        assert code in [finding.code for finding in found(replace(broken, family=family)).findings], family


@pytest.mark.parametrize("family", Family)
def test_a_family_needs_its_references_and_no_more(family: Family) -> None:
    needed = FAMILY_RULES[family].min_references
    for have in range(5):
        one = sample("make it", family=family, pictures=tuple(picture(seed) for seed in range(have + 1)))
        assert ("no_reference" in codes(one)) == (have < needed)


# Texts ----------------------------------------------------------------------------------------------


def test_alternatives_and_responses_are_held_against_the_rules_too() -> None:
    assert codes(with_turn(alternatives=("the <subjct>dog",))) == ["unknown_token"]
    assert codes(with_turn(alternatives=("  ",))) == ["empty_instruction"]
    assert codes(with_turn(alternatives=("take <image_3>",))) == ["target_as_reference"]
    assert codes(with_turn(alternatives=("x" * 8_001,))) == ["instruction_too_long"]
    assert codes(with_turn(response="yes<|im_end|>")) == ["control_token"]
    assert codes(with_turn(response="x" * 8_001)) == ["instruction_too_long"]


def test_a_misspelt_token_is_guessed() -> None:
    assert "<subject>?" in found(asking("the <subjct>dog")).errors[0].message
    assert "mean" not in found(asking("the <xyzzy>dog")).errors[0].message


def test_a_token_speaks_of_pictures_that_stand_before_the_text() -> None:
    assert codes(asking("in this <style>style")) == []
    nothing = sample("in this <style>style", pictures=(picture(3),))
    assert "token_without_picture" in codes(nothing)


def test_a_token_bound_to_the_picture_to_produce_is_an_error() -> None:
    assert codes(asking("a <style>thing of <image_1>", bindings=((0, 3),))) == ["target_as_reference"]


def test_in_several_turns_a_turn_may_name_what_was_made_before_it_and_nothing_later() -> None:
    def turns(first: str, second: str) -> Sample:
        return sample(family=Family.EDITING, turns=(Turn(first, 2), Turn(second, 3)))

    assert codes(turns("make <image_1> red", "make <image_2> blue")) == []
    assert codes(turns("make <image_3> red", "make <image_2> blue")) == ["target_as_reference"]
    assert codes(turns("make <image_1> red", "make <image_3> blue")) == ["target_as_reference"]
    assert codes(sample(family=Family.EDITING, turns=(Turn("red", 2), Turn("blue", 2))))[0] == "target_missing"


def test_a_target_may_not_be_what_an_earlier_turn_made() -> None:
    chain = sample(
        family=Family.EDITING, pictures=(picture(1), picture(2), picture(2)), turns=(Turn("a", 2), Turn("b", 3))
    )
    assert codes(chain) == ["target_equals_reference"]


# Legal oddities -------------------------------------------------------------------------------------


def exif(orientation: int) -> Pillow.Exif:
    made = Pillow.Exif()
    made[0x0112] = orientation
    return made


ODDITIES: dict[str, Callable[[], bytes]] = {
    "CMYK": lambda: encoded(pixels(9).convert("CMYK"), "JPEG"),
    "EXIF rotation": lambda: encoded(pixels(9), "JPEG", exif=exif(6)),
    "alpha": lambda: encoded(pixels(9).convert("RGBA")),
    "grey with alpha": lambda: encoded(pixels(9).convert("LA")),
    "palette": lambda: encoded(pixels(9).quantize(16)),
    "palette with transparency": lambda: encoded(pixels(9).quantize(16), transparency=0),
    "16 bit": lambda: encoded(Pillow.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21)),
    "1 bit": lambda: encoded(pixels(9).convert("1")),
    "animated GIF": lambda: encoded(pixels(9), "GIF", save_all=True, append_images=[pixels(10), pixels(11)]),
    "animated WebP": lambda: encoded(pixels(9), "WEBP", save_all=True, append_images=[pixels(10)]),
    "progressive": lambda: encoded(pixels(9), "JPEG", progressive=True),
    "BMP": lambda: encoded(pixels(9), "BMP"),
    "TIFF": lambda: encoded(pixels(9), "TIFF"),
}


@pytest.mark.parametrize("what", ODDITIES)
@pytest.mark.parametrize("place", [0, 2])
def test_legal_oddities_pass_as_reference_and_as_target(what: str, place: int) -> None:
    data = [picture(1), picture(2), picture(3)]
    data[place] = ODDITIES[what]()
    seen = found(sample(pictures=tuple(data)))
    assert seen.errors == ()
    other_readers = {
        "EXIF rotation": "turned_image",
        "palette with transparency": "transparent_image",
        "16 bit": "deep_image",
    }
    assert [finding.code for finding in seen.warnings] == ([other_readers[what]] if what in other_readers else [])


# Targets that equal a reference ---------------------------------------------------------------------


def equal(first: bytes, second: bytes) -> bool:
    return "target_equals_reference" in codes(sample("make it so", family=Family.EDITING, pictures=(first, second)))


@pytest.mark.parametrize("kind", ["smooth", "noise", "flat", "chequers"])
@pytest.mark.parametrize("other", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("source", ["PNG", "JPEG"])
def test_a_target_with_the_pixels_of_a_reference_is_found_in_any_encoding(kind: str, other: str, source: str) -> None:
    dice = np.random.default_rng(1)
    shown = {
        "smooth": pixels(5, 133, 101),
        "noise": Pillow.fromarray(dice.integers(0, 2, (101, 133, 3), dtype=np.uint8) * 255),
        "flat": Pillow.new("RGB", (133, 101), (7, 90, 200)),
        "chequers": Pillow.fromarray((np.indices((301, 400)).sum(0) // 10 % 2 * 255).astype(np.uint8)),
    }[kind]
    data = encoded(shown, source)
    copy = load(data)
    again = encoded(copy, other, **({"lossless": True} if other == "WEBP" else {}))
    assert equal(data, again)
    assert equal(again, data)


def test_a_target_with_the_same_pixels_in_a_palette_is_found() -> None:
    indexed = pixels(5, 133, 101).quantize(40)
    for kind in ("PNG", "GIF"):
        assert equal(encoded(indexed, kind), encoded(indexed.convert("RGB")))
        assert equal(encoded(indexed.convert("RGB"), "BMP"), encoded(indexed, kind))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_target_that_is_a_turned_file_with_the_same_upright_pixels_is_found(orientation: int) -> None:
    data = encoded(pixels(6, 101, 77), "PNG", exif=exif(orientation))
    assert equal(data, encoded(load(data)))
    assert equal(encoded(load(data)), data)


def test_a_target_that_differs_in_one_pixel_by_one_step_passes() -> None:
    changed = pixels(5).copy()
    red, green, blue = changed.getpixel((20, 20))
    changed.putpixel((20, 20), (red ^ 1, green, blue))
    for kind in ("PNG", "BMP", "TIFF"):
        assert not equal(encoded(pixels(5)), encoded(changed, kind))
        assert not equal(encoded(changed, kind), encoded(pixels(5)))


def test_a_mirrored_or_resized_target_passes() -> None:
    for other in (pixels(5).transpose(Pillow.Transpose.FLIP_LEFT_RIGHT), pixels(5).resize((128, 96))):
        assert not equal(encoded(pixels(5)), encoded(other))


# Tokens ---------------------------------------------------------------------------------------------


def grid(width: int, height: int) -> tuple[int, int]:
    """Tokens of a picture between 512 and 518 pixels on both sides, as VAE latents and ViT patches."""
    assert min(width, height) >= 512
    assert max(width, height) <= 518
    return round(width / 16) * round(height / 16), round(width / 14) * round(height / 14)


def test_tokens_are_counted_as_the_sequence_lays_them_out() -> None:
    one = sample(pictures=tuple(picture(seed, 512, 518) for seed in (1, 2, 3)))
    latents, patches = grid(512, 518)
    text = 2 + -(-len(one.turns[0].instruction.encode()) // 3)
    assert found(one).tokens == text + 3 * (latents + 2) + 2 * (patches + 2)


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=60), st.text(max_size=30))
def test_text_counts_a_token_for_three_bytes_and_two_around_it(instruction: str, response: str) -> None:
    one = Sample("k", Family.UNDERSTANDING, (), (Turn(instruction, response=response),), Source("t", "t", 0))
    wanted = sum(2 + -(-len(text.encode()) // 3) for text in (instruction, response) if text)
    assert count_tokens(one, {}) == wanted


def test_broken_unicode_does_not_stop_the_rules() -> None:
    assert codes(asking("mix \ud800 <image_1> and <image_2>")) == []


def test_the_token_budget_is_the_last_count_that_passes() -> None:
    tokens = found(sample()).tokens
    assert codes(sample(), Limits(max_tokens=tokens)) == []
    assert codes(sample(), Limits(max_tokens=tokens - 1)) == ["over_budget"]


def test_limits_are_the_user_s() -> None:
    one = sample()
    assert codes(one, Limits(max_pixels=64 * 48 - 1)) == ["bomb"] * 3
    assert codes(one, Limits(min_side=49)) == ["too_small"] * 3
    assert codes(one, Limits(max_aspect=1.3)) == ["extreme_aspect"] * 3
    assert codes(one, Limits(max_references=1)) == ["too_many_references"]
    assert codes(one, Limits(max_instruction=10)) == ["instruction_too_long"]


@pytest.mark.slow
def test_pictures_beyond_the_default_limit_are_compared_where_the_limit_was_raised() -> None:
    white = Pillow.new("1", (8_100, 8_000), 1)
    one = sample(
        "again", family=Family.EDITING, pictures=(encoded(white), encoded(white, "TIFF", compression="group4"))
    )
    limits = Limits(max_pixels=70_000_000, max_tokens=10**6)
    assert codes(one, limits) == ["target_equals_reference"]


def test_upright_size_is_what_the_rules_look_at() -> None:
    tall = encoded(pixels(5, 320, 40), "JPEG", exif=exif(6))
    assert (probe(tall).width, probe(tall).height) == (40, 320)
    assert codes(sample(LATIN, pictures=(tall, picture(2), picture(3)))) == []
