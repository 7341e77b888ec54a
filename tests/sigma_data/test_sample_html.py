"""A notebook shows a sample whole: coloured tokens, every image with its role, and nothing of it as markup."""

from __future__ import annotations

import io
from html.parser import HTMLParser

from PIL import Image as Pillow

from sigma_data.sample import Family, Image, Sample, Source, Turn
from sigma_data.token_style import TOKEN_COLOURS


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return buffer.getvalue()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def shown(*turns: Turn, images: tuple[Image, ...]) -> tuple[str, Tags]:
    source = Source("a<b>", "c&d", 3)
    html = Sample("some-id", Family.EDITING, images, turns, source)._repr_html_()
    tags = Tags()
    tags.feed(html)
    return html, tags


def test_tokens_have_their_colours_and_images_their_roles() -> None:
    turn = Turn("Put <subject>the cup <image_1> here", target=2)
    html, tags = shown(turn, images=(Image(1, png("red")), Image(2, png("blue"))))
    assert f'<b style="color:{TOKEN_COLOURS["subject"]}">&lt;subject&gt;</b>the cup ' in html
    assert "&lt;image_1&gt;" in html and "image 2</span>" in html
    pictures = [attributes for tag, attributes in tags.found if tag == "img"]
    assert [one["alt"] for one in pictures] == ["image 1, reference", "image 2, target"]
    assert all(str(one["src"]).startswith("data:image/jpeg;base64,") for one in pictures)


def test_what_a_source_says_is_text_and_an_unreadable_image_is_named() -> None:
    turns = (Turn("<script>alert(1)</script> & \x07", response="<img src=x>\nsecond"), Turn("no answer"))
    html, tags = shown(*turns, images=(Image(1, b"no image"), Image(2, None)))
    assert not {"script", "img"} & {tag for tag, _ in tags.found}
    assert html.count("<i>unreadable</i>") == 2
    assert "a&lt;b&gt;, c&amp;d, row 3" in html and "&lt;img src=x&gt;<br>second" in html
