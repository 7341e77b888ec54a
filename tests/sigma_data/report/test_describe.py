"""Promises of the portrait: readable words, distinguishable colours, and a drawing that never fails."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.image_files import plain

from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.checks import examine
from sigma_data.instruction import ATTRIBUTES
from sigma_data.report.describe import describe
from sigma_data.report.draw import draw
from sigma_data.sample import Family, Image, Sample, Source, Turn
from sigma_data.token_style import TARGET_COLOUR, TOKEN_COLOURS, printable

SOURCE = Source("demo", "demo.jsonl", 3, "cc0-1.0")


def make(images: list[bytes | None], *turns: Turn, family: Family = Family.EDITING) -> Sample:
    numbered = tuple(Image(number, data) for number, data in enumerate(images, start=1))
    return Sample("0123456789abcdef0123", family, numbered, turns, SOURCE)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def oklab(colour: str) -> NDArray[np.float64]:
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_lms = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    to_lab = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    lab: NDArray[np.float64] = to_lab @ np.cbrt(to_lms @ linear)
    return lab


class TestColours:
    def test_every_token_has_one_in_the_canonical_order(self) -> None:
        assert tuple(TOKEN_COLOURS) == ATTRIBUTES

    @pytest.mark.parametrize("name", ATTRIBUTES)
    def test_a_colour_carries_white_text_and_stands_out_from_black(self, name: str) -> None:
        value = luminance(TOKEN_COLOURS[name])
        assert 1.05 / (value + 0.05) >= 4.5
        assert (value + 0.05) / 0.05 >= 3

    def test_colours_are_far_apart(self) -> None:
        points = [oklab(colour) for colour in (*TOKEN_COLOURS.values(), TARGET_COLOUR)]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)) > 0.1


class TestDescribe:
    def test_the_words_alone_say_everything(self) -> None:
        turn = Turn("Put <subject>the dog of <Image 2> on <background>the beach.", 3, alternatives=("Dog on a beach.",))
        sample = make([plain(40, 30), plain(50, 60), plain(70, 80, kind="JPEG")], turn)
        text = str(describe(sample, examine(sample, Limits()).infos))
        assert "0123456789abcdef0123  editing" in text
        assert "demo, demo.jsonl, row 3, license cc0-1.0" in text
        assert "Put <subject>the dog of <image_2> on <background>the beach." in text
        assert "<subject> refers to image 2" in text
        assert "or: Dog on a beach." in text
        assert "target image 3" in text
        assert re.search(r"2  reference  PNG   50 x 60  \d+ bytes", text)
        assert re.search(r"3  target     JPEG  70 x 80  ", text)

    def test_tokens_are_coloured_as_everywhere(self) -> None:
        described = describe(make([plain(40, 30)], Turn("The <style>look.", 1)))
        assert any(TOKEN_COLOURS["style"] in str(span.style) for span in described.spans)

    def test_answers_and_truth_are_told(self) -> None:
        turn = Turn("What is it?", response="A dog.\nIt sleeps.")
        sample = make([plain(40, 30)], turn, family=Family.UNDERSTANDING)
        sample = Sample(**{**vars(sample), "truth": '{"count": 2, "names": ["a", "b"]}'})
        text = str(describe(sample))
        assert "response A dog.\n  It sleeps." in text
        assert "count: 2" in text and 'names: ["a", "b"]' in text

    def test_images_that_cannot_be_read_give_their_reason(self) -> None:
        whole = plain(300, 200, kind="JPEG")
        sample = make([b"<html>", None, whole[: len(whole) // 2]], Turn("Change <image_1>.", 9))
        text = str(describe(sample, examine(sample, Limits()).infos))
        assert "not an image but an HTML page" in text
        assert "the image has no bytes" in text
        assert "ends too early" in text

    def test_no_control_character_reaches_the_terminal(self) -> None:
        evil = "a\x1b]0;title\x07b\x1b[31mc\u202ed\x9be"
        source = Source(evil, evil, 0, evil)
        images = (Image(1, plain(40, 40)),)
        turns = (Turn(evil, 1, response=evil, alternatives=(evil,)),)
        text = str(describe(Sample(evil, Family.EDITING, images, turns, source, truth=evil)))
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)

    def test_printable_keeps_line_breaks_and_tabs(self) -> None:
        assert printable("a\r\nb\tc\rd") == "a\nb\tc\nd"


PICTURES = [plain(48, 36, "#aa3333"), plain(30, 64, "#33aa33", "JPEG"), plain(400, 10), plain(3, 300)]
TINY = [*PICTURES, None, b"<html>", b""]
WORDS = st.one_of(
    st.text(max_size=60),
    st.sampled_from([f"<{name}>" for name in ATTRIBUTES]),
    st.sampled_from(["<image_1>", "<image 3>", "<image_99>", "<image>", "W" * 700, "\n\n", "\u202e\x00\x1b", "漢字🙂"]),
)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)
TURNS = st.builds(Turn, TEXTS, st.none() | st.integers(0, 12), st.none() | TEXTS)


class TestDraw:
    @pytest.mark.slow
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        images=st.lists(st.sampled_from(TINY), max_size=12),
        turns=st.lists(TURNS, max_size=4),
        width=st.sampled_from([1, 240, 375, 800, 1280]),
    )
    def test_whatever_a_sample_holds_the_canvas_keeps_its_width_and_its_margins(
        self, images: list[bytes | None], turns: list[Turn], width: int
    ) -> None:
        canvas = draw(make(images, *turns), width=width)
        assert canvas.mode == "RGB"
        assert canvas.width == max(width, 240)
        assert canvas.height < 20_000
        # The margins stay white: nothing overflows to the right or at the bottom.
        pixels = np.asarray(canvas)
        assert (pixels[:, -8:] == 255).all()
        assert (pixels[-8:] == 255).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("references", range(1, 11))
    def test_every_reference_and_the_target_are_seen(self, references: int) -> None:
        shades = [f"#{20 * number:02x}{255 - 20 * number:02x}c8" for number in range(references + 1)]
        images: list[bytes | None] = [plain(64, 48, shade) for shade in shades]
        canvas = draw(make(images, Turn("Mix them.", references + 1)))
        seen = {tuple(pixel) for pixel in np.asarray(canvas).reshape(-1, 3)[::3]}
        assert {tuple(int(shade[at : at + 2], 16) for at in (1, 3, 5)) for shade in shades} <= seen

    @pytest.mark.slow
    def test_targets_are_framed_and_tokens_are_coloured(self) -> None:
        canvas = draw(make([plain(64, 48), plain(64, 48)], Turn("In <style>this look.", 2)))
        seen = {tuple(pixel) for pixel in np.asarray(canvas).reshape(-1, 3)}
        for colour in (TARGET_COLOUR, TOKEN_COLOURS["style"]):
            assert tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) in seen

    def test_the_same_sample_is_drawn_the_same(self) -> None:
        sample = make([plain(64, 48), plain(48, 64)], Turn("In <style>this look.", 2))
        assert draw(sample).tobytes() == draw(sample).tobytes()

    @pytest.mark.slow
    def test_a_hundred_turns_end_with_a_note_instead_of_an_endless_canvas(self) -> None:
        turns = [Turn("word " * 900, response="word " * 900) for _ in range(100)]
        assert draw(make([plain(64, 48)], *turns)).height < 20_000
