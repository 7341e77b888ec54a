"""A sample as one image. Every block is measured before any is painted, so that nothing overflows the canvas."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from sigma_data.images.decode import ImageFault, load, open_image
from sigma_data.instruction import Attribute, Part, Placeholder, Text, parse
from sigma_data.sample import Sample, Turn
from sigma_data.token_style import TARGET_COLOUR, TOKEN_COLOURS, printable

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

PAPER, INK, MUTED, HAIRLINE, HOLLOW = "#ffffff", "#1b1d20", "#686e76", "#e2e4e8", "#eceef1"
_TARGET = "target"
_MAX_TEXT, _MAX_LINES = 6_000, 160
_MAX_HEIGHT, _MAX_IMAGES = 12_000, 24
_EMPTY_TURN = Turn("")


def draw(sample: Sample, *, width: int = 1280) -> Image.Image:
    """The sample as one image `width` pixels wide (240 at least), as high as it needs.

    A band a turn: the images in its context, an arrow, its target; below the instruction and the answer in words, if
    any. Never raises for what a sample holds.
    """
    width = max(width, 240)
    sheet = _Sheet(width)
    blocks: list[_Block] = [_Heading(sheet, sample)]
    for index, turn in enumerate(sample.turns or (_EMPTY_TURN,)):
        if sum(block.height for block in blocks) > _MAX_HEIGHT:
            blocks.append(_Flow(sheet, (Text(f"and {len(sample.turns) - index} more turns"),)))
            break
        if index:
            blocks.append(_Rule())
        shown = sample.context(index) if sample.turns else tuple(image.number for image in sample.images)
        # A conversation about the same images shows them once.
        if (shown or turn.target is not None) and (index == 0 or turn.target is not None):
            blocks.append(_ImageRow(sheet, sample, shown, turn.target))
        label = f"{index + 1}." if len(sample.turns) > 1 else ""
        parts = parse(turn.instruction, references=len(sample.references)).parts
        blocks.append(_Flow(sheet, parts, label=label))
        if turn.response is not None:
            blocks.append(_Flow(sheet, (Text(turn.response),), bar=True))

    canvas = Image.new("RGB", (width, sum(block.height + sheet.gap for block in blocks) + sheet.gap), PAPER)
    pen = ImageDraw.Draw(canvas)
    top = sheet.gap
    for block in blocks:
        block.paint(canvas, pen, sheet.margin, top, width - 2 * sheet.margin)
        top += block.height + sheet.gap
    return canvas


@lru_cache(maxsize=16)
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@dataclass(frozen=True)
class _Sheet:
    """The sizes that follow from the width."""

    width: int

    @property
    def margin(self) -> int:
        return 12 if self.width < 600 else 32

    @property
    def gap(self) -> int:
        return 12 if self.width < 600 else 24

    @property
    def inner(self) -> int:
        return self.width - 2 * self.margin

    def size(self, size: int) -> int:
        """A font size, smaller on a narrow canvas."""
        return size if self.width >= 900 else max(12, size * 3 // 4)


class _Block(ABC):
    """Something with a height that paints itself."""

    height: int = 0

    @abstractmethod
    def paint(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        """Paint it with its upper left corner at (left, top)."""


class _Rule(_Block):
    height = 1

    def paint(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        pen.line((left, top, left + width, top), fill=HAIRLINE)


class _Heading(_Block):
    """Family and id, and below where the sample comes from."""

    def __init__(self, sheet: _Sheet, sample: Sample) -> None:
        self.large, self.small = _font(sheet.size(26)), _font(sheet.size(16))
        source = sample.source
        self.family = str(sample.family) + (" (inferred)" if sample.family_inferred else "")
        self.place = f"{source.name} · {source.location} · row {source.row} · license {source.license}"
        self.id = sample.id
        self.first = sheet.size(26) * 4 // 3
        self.height = self.first + sheet.size(16) * 4 // 3

    def paint(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        pen.text((left, top), self.family, font=self.large, fill=INK)
        room = width - int(self.large.getlength(self.family)) - 16
        name = shorten(self.id, self.small, room)
        pen.text((left + width, top + 6), name, font=self.small, fill=MUTED, anchor="ra")
        pen.text((left, top + self.first), shorten(self.place, self.small, width), font=self.small, fill=MUTED)


def shorten(text: str, font: Font, room: float) -> str:
    """The text on one line, cut with an ellipsis where it is longer than `room` pixels."""
    line = " ".join(printable(text[:2_000]).split())
    if font.getlength(line) <= room:
        return line
    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(line[:middle] + "…") <= room else (low, middle - 1)
    return line[:low] + "…" if low else ""


@dataclass(frozen=True)
class _Atom:
    """A word or a chip of a line: chips have a fill (attribute token) or an outline (placeholder)."""

    text: str
    wide: int
    spaced: bool
    fill: str = ""
    outline: bool = False


class _Flow(_Block):
    """Words and chips, wrapped to the width; `bar` marks an answer, `label` stands before the first line."""

    def __init__(self, sheet: _Sheet, parts: Sequence[Part], *, label: str = "", bar: bool = False) -> None:
        self.size = sheet.size(20)
        self.font, self.chip = _font(self.size), _font(self.size * 4 // 5)
        self.label, self.bar = label, bar
        self.indent = 16 if bar else int(self.font.getlength(label + "  ")) if label else 0
        self.line = self.size * 3 // 2
        self.space = max(2, int(self.font.getlength(" ")))
        self.lines = self._wrap(parts, sheet.inner - self.indent)
        self.height = self.line * len(self.lines)

    def _wrap(self, parts: Sequence[Part], room: int) -> list[list[tuple[int, _Atom]]]:
        lines: list[list[tuple[int, _Atom]]] = [[]]
        at = 0
        for atom in self._atoms(parts, room):
            if len(lines) > _MAX_LINES:
                return [*lines[:_MAX_LINES], [(0, _Atom("…", self.size, False))]]
            if atom is None:
                lines.append([])
                at = 0
                continue
            start = at + (self.space if atom.spaced and at else 0)
            if at and start + atom.wide > room:
                lines.append([])
                start = 0
            lines[-1].append((start, atom))
            at = start + atom.wide
        return lines

    def _atoms(self, parts: Sequence[Part], room: int) -> Iterator[_Atom | None]:
        left = _MAX_TEXT
        for part in parts:
            match part:
                case Text(text):
                    if len(text) > left:
                        text = text[:left] + f"… ({len(text) - left:,} more characters)"
                    left = max(0, left - len(text))
                    yield from self._words(text, room)
                case Attribute(name):
                    wide = int(self.chip.getlength(name)) + 14
                    yield _Atom(shorten(name, self.chip, room - 14), min(wide, room), True, TOKEN_COLOURS[name])
                case Placeholder(number):
                    name = shorten(f"image {number}", self.chip, room - 14)
                    yield _Atom(name, min(int(self.chip.getlength(name)) + 14, room), True, outline=True)

    def _words(self, text: str, room: int) -> Iterator[_Atom | None]:
        for row, line in enumerate(printable(text).split("\n")):
            if row:
                yield None
            for match in re.finditer(r"\S+", line):
                word = match[0]
                spaced = match.start() > 0
                while (wide := int(self.font.getlength(word)) + 1) > room:
                    cut = max(1, len(shorten(word, self.font, room)) - 1)
                    yield _Atom(word[:cut], min(int(self.font.getlength(word[:cut])) + 1, room), spaced)
                    word, spaced = word[cut:], False
                    if not word:
                        break
                if word:
                    # A full stop or comma after a chip needs no space; a word does.
                    yield _Atom(word, wide, spaced or (not row and word[0].isalnum()))

    def paint(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        if self.bar:
            pen.rectangle((left, top, left + 3, top + self.height), fill=TARGET_COLOUR)
        if self.label:
            pen.text((left, top + self.line // 2), self.label, font=self.font, fill=MUTED, anchor="lm")
        for row, line in enumerate(self.lines):
            middle = top + row * self.line + self.line // 2
            for start, atom in line:
                x = left + self.indent + start
                if atom.fill or atom.outline:
                    box = (x, middle - self.size * 5 // 8, x + atom.wide - 1, middle + self.size * 5 // 8)
                    pen.rounded_rectangle(box, radius=6, fill=atom.fill or HOLLOW, outline=atom.fill or MUTED)
                    ink = PAPER if atom.fill else INK
                    pen.text((x + atom.wide / 2, middle), atom.text, font=self.chip, fill=ink, anchor="mm")
                else:
                    pen.text((x, middle), atom.text, font=self.font, fill=INK, anchor="lm")


@dataclass(frozen=True)
class _ShownImage:
    """An image as the sheet shows it: decoded, or the reason why it is not."""

    number: int
    role: str
    image: Image.Image | None
    size: tuple[int, int] | None
    fault: str = ""

    @property
    def aspect(self) -> float:
        """Width over height of its cell; extreme images are fitted inside a less extreme cell."""
        width, height = self.size or (4, 3)
        return min(3.0, max(0.4, width / height))

    def captions(self) -> Iterator[str]:
        """Possible captions, the longest first."""
        size = f"{self.size[0]} x {self.size[1]}" if self.size else ""
        if size:
            yield f"image {self.number} · {self.role} · {size}"
            yield f"{self.role} · {size}"
            yield size
        else:
            yield f"image {self.number} · {self.role}"
        yield self.role


class _ImageRow(_Block):
    """The images in a turn's context, an arrow, and its target."""

    def __init__(self, sheet: _Sheet, sample: Sample, numbers: Sequence[int], target: int | None) -> None:
        self.gap = 6 if sheet.width < 600 else 16
        self.font, self.caption = _font(sheet.size(15)), sheet.size(15) * 2
        self.badge = sheet.size(17)
        hidden = max(0, len(numbers) - _MAX_IMAGES)
        self.more = f"and {hidden} more" if hidden else ""
        data = {image.number: image.data for image in sample.images}
        tallest = sheet.width // 3
        self.sources = [
            _shown_image(data, number, "earlier target" if number in sample.targets else "reference", tallest)
            for number in numbers[:_MAX_IMAGES]
        ]
        self.target = None if target is None else _shown_image(data, target, _TARGET, tallest)
        self._arrange(sheet.inner, tallest)
        self.height = max(self._rows_height(), self.target_height + self.caption) + (self.caption if self.more else 0)

    def _arrange(self, room: int, tallest: int) -> None:
        """One row if it fits at a reasonable height; else the references in rows beside the target."""
        self.target_height = 0
        self.arrow = max(24, room // 20) if self.sources and self.target else 0
        aspects = [shown.aspect for shown in self.sources]
        if self.target is None:
            self.rows, self.row_height = self._fold(aspects, room, tallest)
            return
        alone = room - self.arrow - self.gap * (len(aspects) + 1)
        together = int(min(tallest, alone / (sum(aspects) + self.target.aspect)))
        if together >= room // 7 or not aspects:
            self.rows, self.row_height, self.target_height = [len(aspects)], together, together
            return
        share = int(room * 0.6)
        self.rows, self.row_height = self._fold(aspects, share, tallest)
        rest = room - share - self.arrow - 2 * self.gap
        self.target_height = max(1, int(min(tallest, rest / self.target.aspect)))

    def _fold(self, aspects: Sequence[float], room: int, tallest: int) -> tuple[list[int], int]:
        """Images a row, and their common height, as large as the block allows."""
        best: tuple[int, list[int]] = (0, [])
        total = sum(aspects)
        for rows in range(1, len(aspects) + 1):
            widths, sizes = [0.0], [0]
            for aspect in aspects:
                # A new row once this one holds its share of the total width.
                if sizes[-1] and widths[-1] + aspect / 2 > total / rows:
                    widths.append(0.0)
                    sizes.append(0)
                widths[-1] += aspect
                sizes[-1] += 1
            height = (tallest + self.caption) * 1.3 / len(sizes) - self.caption
            fit = min((room - self.gap * (size - 1)) / wide for size, wide in zip(sizes, widths, strict=True))
            if min(height, fit) > best[0]:
                best = (int(min(height, fit, tallest)), sizes)
        # If nothing fits (many images, narrow sheet): one a row, however high that gets.
        return (best[1], best[0]) if best[0] >= 24 else ([1] * len(aspects), 24)

    def _rows_height(self) -> int:
        return len(self.rows) * (self.row_height + self.caption) if self.sources else 0

    def paint(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        full = self.height - (self.caption if self.more else 0)
        y = top + (full - self._rows_height()) // 2
        right = left
        images = iter(self.sources)
        for count in self.rows:
            x = left
            for _ in range(count):
                shown = next(images)
                wide = max(1, int(shown.aspect * self.row_height))
                self._cell(canvas, pen, shown, (x, y, wide, self.row_height))
                x += wide + self.gap
            right = max(right, x)
            y += self.row_height + self.caption
        if self.more:
            pen.text((left, top + full), self.more, font=self.font, fill=MUTED)
        if self.target is not None:
            middle = top + (full - self.caption) // 2
            if self.arrow:
                _arrow(pen, right, right + self.arrow, middle)
                right += self.arrow + self.gap
            wide = max(1, int(self.target.aspect * self.target_height))
            y = top + (full - self.caption - self.target_height) // 2
            self._cell(canvas, pen, self.target, (right, y, wide, self.target_height))

    def _cell(
        self, canvas: Image.Image, pen: ImageDraw.ImageDraw, shown: _ShownImage, box: tuple[int, int, int, int]
    ) -> None:
        x, y, wide, high = box
        if shown.image is None:
            pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=HOLLOW)
            self._reason(pen, shown.fault, box)
        else:
            scale = min(wide / shown.image.width, high / shown.image.height)
            size = (max(1, round(shown.image.width * scale)), max(1, round(shown.image.height * scale)))
            pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=HOLLOW)
            small = shown.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
            canvas.paste(small, (x + (wide - size[0]) // 2, y + (high - size[1]) // 2))
        target = shown.role == _TARGET
        frame = TARGET_COLOUR if target else HAIRLINE
        pen.rectangle((x, y, x + wide - 1, y + high - 1), outline=frame, width=3 if target else 1)
        number = str(shown.number)
        badge = max(self.badge * 4 // 3, int(self.font.getlength(number)) + 10)
        if badge <= wide and self.badge * 4 // 3 <= high:
            corner = (x, y, x + badge - 1, y + self.badge * 4 // 3 - 1)
            pen.rectangle(corner, fill=TARGET_COLOUR if target else INK)
            centre = ((corner[0] + corner[2]) / 2, (corner[1] + corner[3]) / 2)
            pen.text(centre, number, font=self.font, fill=INK if target else PAPER, anchor="mm")
        caption = next((text for text in shown.captions() if self.font.getlength(text) <= wide), "")
        pen.text((x, y + high + self.caption // 2), caption, font=self.font, fill=MUTED, anchor="lm")

    def _reason(self, pen: ImageDraw.ImageDraw, fault: str, box: tuple[int, int, int, int]) -> None:
        """Write the reason in the grey box, as much of it as fits below the badge."""
        x, y, wide, high = box
        line = self.caption * 2 // 3
        at, words = y + self.badge * 4 // 3 + 6, printable(fault).split()
        while words and at + line <= y + high:
            fits = (n for n in range(len(words), 1, -1) if self.font.getlength(" ".join(words[:n])) <= wide - 16)
            count = next(fits, 1)
            pen.text((x + 8, at), shorten(" ".join(words[:count]), self.font, wide - 16), font=self.font, fill=MUTED)
            words, at = words[count:], at + line


def _shown_image(data: dict[int, bytes | None], number: int, role: str, tallest: int) -> _ShownImage:
    if number not in data:
        return _ShownImage(number, role, None, None, "the sample has no such image")
    try:
        image = load(data[number], at_least=2 * tallest)
        size = open_image(data[number]).size
    except ImageFault as fault:
        return _ShownImage(number, role, None, None, fault.message)
    upright = size if (size[0] >= size[1]) == (image.width >= image.height) else (size[1], size[0])
    # No cell is wider than three times its height; many large images must not fill the memory.
    image.thumbnail((3 * tallest, 3 * tallest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _ShownImage(number, role, image, upright)


def _arrow(pen: ImageDraw.ImageDraw, start: int, end: int, y: int) -> None:
    head = max(4, min(9, (end - start) // 5))
    pen.line((start, y, end - head, y), fill=MUTED, width=2)
    pen.polygon([(end, y), (end - 2 * head, y - head), (end - 2 * head, y + head)], fill=MUTED)
