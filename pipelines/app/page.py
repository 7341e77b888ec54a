"""The page: what gradio shows and calls. It knows the studio and no model."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.app import markup
from pipelines.app.ask import CACHES, Ask, check_image, defaults_of
from pipelines.app.config import MAX_IMAGES
from pipelines.app.gallery import Entry
from pipelines.app.numbers import CACHE, FIELDS, MASK, SIZE, in_fields, read_numbers
from pipelines.app.studio import Job, Studio
from pipelines.generate.example import MODEL as EXAMPLE_MODEL
from pipelines.generate.example import SAMPLING, draw_example
from sigma_data.errors import ConfigError, SigmaError
from sigma_model.omnigen2.files import is_omnigen2

PAGE = 12
"""Results of a page of the gallery."""
NOBODY = "(no comparison)"
TEXT = "Text"
_POLL = 0.1
_TICK = "element.addEventListener('click', (e) => {{ const b = e.target.closest('[data-{0}]');\
 if (b) trigger('click', {{ {0}: b.dataset.{0} }}); }})"

Images = list[tuple[str, str]]
"""Uploaded files, each with what it was called."""


def theme() -> dict[str, Any]:
    """Gradio's look with the system's fonts, our style sheet and script."""
    package = files("pipelines.app")
    look = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue")
    script = package.joinpath("app.js").read_text("utf-8")
    return {
        "theme": look,
        "css": markup.style() + package.joinpath("app.css").read_text("utf-8"),
        "head": f"<script>{script}</script>",
    }


def build_page(studio: Studio) -> Any:
    """The page as gradio's Blocks."""
    desk = _Desk(studio)
    models = list(studio.config.models)
    usual = defaults_of(models[0])
    with gr.Blocks(title="sigma", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML("<h1>sigma</h1><p class='hint'>One image from several references.</p>")
        held = gr.State([])
        first = gr.State(0)
        with gr.Row():
            with gr.Column(scale=1, min_width=320, elem_id="ask"):
                # Without `file_types`: gradio would refuse by the name what is judged by its content.
                upload = gr.File(
                    label=f"Reference images, up to {MAX_IMAGES}", file_count="multiple", height=120, elem_id="upload"
                )
                shown = gr.HTML(elem_id="references", js_on_load=_TICK.format("remove"))
                prompt = gr.Textbox(
                    label="Instruction", lines=4, max_lines=12, elem_id="prompt", max_length=20_000,
                    placeholder="Put <subject> the cup <image_1> on <background> the table <image_2>",
                )  # fmt: skip
                tokens = gr.HTML(markup.token_buttons(0), elem_id="tokens", js_on_load=None)
                gr.HTML("<h2>How it is understood</h2>")
                understood = gr.HTML(markup.understood("", 0), elem_id="understood", js_on_load=None)
                with gr.Row(elem_id="go"):
                    make = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                    example = gr.Button("Fill in an example", elem_id="example")
                answer = gr.Radio(["Image", TEXT], value="Image", label="Answer with", elem_id="answer")
                blind = gr.HTML(elem_id="blind", js_on_load=None)
                model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
                other = gr.Dropdown(
                    [NOBODY, *models], value=NOBODY, label="Compare with", elem_id="other", visible=len(models) > 1
                )
                with gr.Row():
                    seed = _number("seed", 0)
                    dice = gr.Button("Another seed", elem_id="dice")
                with gr.Accordion("Sampling", open=False, elem_id="sampling"):
                    steps, towards_text, towards_image = (
                        _number(name, usual[name]) for name in ("steps", "text_scale", "image_scale")
                    )
                    size = gr.Textbox(label=f"{SIZE}, e.g. 1024x768; by default the last reference's", elem_id="size")
                    sized = gr.HTML(elem_id="sized", js_on_load=None)
                    mask = gr.Checkbox(True, label=f"{MASK}: attribute tokens see their own reference only")
                    cache = gr.Dropdown(
                        list(CACHES) or ["none"], value="none", visible=bool(CACHES), elem_id="cache",
                        label=CACHE,
                    )  # fmt: skip
                    longest, warmth = (_number(name, usual[name]) for name in ("max_tokens", "temperature"))
            with gr.Column(scale=1, min_width=320, elem_id="made"):
                state = gr.HTML(markup.said("Ready"), elem_id="state", js_on_load=None)
                progress = gr.HTML(elem_id="progress", js_on_load=None)
                result = gr.HTML(elem_id="result", js_on_load=None)
        gr.HTML("<h2>Gallery</h2>")
        cards = gr.HTML(elem_id="gallery", js_on_load=_TICK.format("use"))
        with gr.Row():
            newer, older = gr.Button("Newer", elem_id="newer"), gr.Button("Older", elem_id="older")

        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        sampling = [seed, steps, towards_text, towards_image, size, mask, longest, warmth, cache]
        reading = [prompt, held, model]
        desk_images = [upload, held, shown, tokens]
        filled = [
            upload.upload(desk.add, [upload, held], desk_images, **quick),
            shown.click(desk.remove, held, desk_images, **quick),
            example.click(desk.example, model, [prompt, *desk_images, steps, towards_text, towards_image], **quick),
        ]
        read = {"trigger_mode": "always_last", **quick}
        gr.on([prompt.change, model.change], desk.understand, reading, understood, **read)
        gr.on([size.change, model.change, other.change], desk.sizes, [size, model, other], sized, **read)
        gr.on([answer.change, model.change, other.change], desk.answers, [answer, model, other], blind, **read)
        model.change(desk.usual, model, [steps, towards_text, towards_image], **quick)
        dice.click(lambda: random.SystemRandom().randrange(2**31), None, seed, **quick)
        asked = [prompt, held, answer, model, other, *sampling]
        made = [state, progress, result, cards, first]
        make.click(desk.generate, asked, made, concurrency_limit=None, show_progress="hidden", api_name="generate")
        stop.click(desk.stop, None, state, **quick)
        whole = [prompt, *desk_images, answer, model, other, *sampling, result]
        filled.append(cards.click(desk.reuse, None, whole, **quick))
        for event in filled:
            event.then(desk.understand, reading, understood, **quick)
        newer.click(desk.newer, first, [cards, first], **quick)
        older.click(desk.older, first, [cards, first], **quick)
        page.load(lambda: desk.cards(0), None, [cards, first], **quick)
        page.unload(desk.leave)
    return page


def _models(model: str, other: str | None) -> tuple[str, ...]:
    """Who is asked."""
    return (model,) if other in (NOBODY, model, None) else (model, other)


def _number(name: str, value: float | None = None, **words: Any) -> Any:
    """A field for a number: a slider where it has bounds, which `read_numbers` checks.

    Gradio would check them, too, and log a traceback for a field that somebody has emptied.
    """
    field = FIELDS[name]
    words |= {"value": value, "label": field.label, "minimum": field.least, "elem_id": name.replace("_", "-")}
    if field.most is None:
        shown: Any = gr.Number(precision=0, **words)
    else:
        shown = gr.Slider(maximum=field.most, step=field.step, **words)
    shown.preprocess = lambda payload: payload
    return shown


class _Desk:
    """The page's handlers. `_mine` has the job of each open page."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._mine: dict[str, Job] = {}
        self._drawn = 0

    def add(self, uploaded: Sequence[str] | None, held: Images) -> tuple[Any, ...]:
        """Take uploaded images; what cannot be used is said, and left out."""
        held, faults = list(held), []
        for path in uploaded or ():
            name = Path(path).name
            if len(held) >= MAX_IMAGES:
                faults.append(f"{name}: at most {MAX_IMAGES} images are taken; remove one first")
                continue
            try:
                self._studio.decode(check_image, Path(path), name)
            except ConfigError as error:
                faults.append(str(error))
            else:
                held.append((str(path), name))
        return self._images(held, faults)

    def remove(self, held: Images, event: gr.EventData) -> tuple[Any, ...]:
        """Take an image away; the others move up."""
        number = int(event.remove)
        return self._images([one for place, one in enumerate(held, 1) if place != number])

    def _images(self, held: Images, faults: Sequence[str] = ()) -> tuple[Any, ...]:
        shown = self._studio.decode(markup.references, held, faults)
        return None, held, shown, markup.token_buttons(len(held))

    def understand(self, prompt: str, held: Images, model: str) -> str:
        """How an instruction is read."""
        note = ""
        if is_omnigen2(Path(model)):
            note = "OmniGen2 does not know attribute tokens: it is asked without them, in plain words."
        return markup.understood(prompt, len(held), note)

    def sizes(self, size: str, model: str, other: str) -> str:
        """What the models make of the size that is written."""
        return markup.sizes(_models(model, other), self._studio.config.base, (size or "").strip() or None)

    def answers(self, answer: str, model: str, other: str) -> str:
        """What is to be known of the models' answers with text."""
        return markup.answers(_models(model, other), self._studio.config.base) if answer == TEXT else ""

    def usual(self, model: str) -> tuple[Any, ...]:
        """A model's own defaults."""
        found = defaults_of(model)
        return found["steps"], found["text_scale"], found["image_scale"]

    async def generate(
        self,
        prompt: str,
        held: Images,
        answer: str,
        model: str,
        other: str,
        seed: Any,
        steps: Any,
        text_scale: Any,
        image_scale: Any,
        size: str,
        group_mask: bool,
        max_tokens: Any,
        temperature: Any,
        cache: str,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Put the request in line and tell where it is, until it has ended; whoever leaves stops it."""
        keep = (gr.skip(), gr.skip(), gr.skip())
        paths, names = tuple(path for path, _ in held), tuple(name for _, name in held)
        try:
            settings = {
                **read_numbers({
                    "seed": seed, "steps": steps, "text_scale": text_scale, "image_scale": image_scale,
                    "max_tokens": max_tokens, "temperature": temperature,
                }),
                "size": (size or "").strip() or None, "group_mask": group_mask, **({"cache": cache} if CACHES else {}),
            }  # fmt: skip
            asked = Ask(prompt or "", paths, names, _models(model, other), answer == TEXT, settings)
            job = await asyncio.to_thread(self._studio.submit, asked)
        except SigmaError as error:
            yield markup.said(in_fields(str(error)), fault=True), "", *keep
            return
        self._mine[request.session_hash] = job
        try:
            before: tuple[Any, ...] = ()
            while not job.ended.is_set():
                ahead = self._studio.ahead(job)
                now = (job.state, job.model, ahead, job.step, id(job.preview))
                if now != before:
                    before = now
                    yield markup.status(job, ahead), markup.running(job), *keep
                await asyncio.sleep(_POLL)
        finally:
            if self._mine.get(request.session_hash) is job:
                del self._mine[request.session_hash]
            if not job.ended.is_set():
                self._studio.stop(job)
        yield markup.status(job, 0), "", markup.results(job.entry), *self.cards(0)

    def stop(self, request: gr.Request) -> str:
        """Stop the page's own job."""
        job = self._mine.get(request.session_hash)
        if job is None:
            return markup.said("Nothing is running")
        self._studio.stop(job)
        return markup.said("Stopping")

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        job = self._mine.pop(request.session_hash, None)
        if job is not None:
            self._studio.stop(job)

    def reuse(self, event: gr.EventData) -> tuple[Any, ...]:
        """Fill in the form from a result."""
        entry = self._studio.gallery.entry(str(event.use))
        ask = entry.ask
        served = [model for model in ask.models if model in self._studio.config.models]
        model = served[0] if served else self._studio.config.models[0]
        held = list(zip(ask.images, ask.names, strict=True))
        values = {**defaults_of(model), **(ask.settings or {})}
        names = ("seed", "steps", "text_scale", "image_scale", "size", "group_mask", "max_tokens", "temperature")
        return (
            ask.prompt,
            *self._images(held),
            TEXT if ask.text else "Image",
            model,
            served[1] if len(served) > 1 else NOBODY,
            *(values[name] for name in names),
            values.get("cache", "none"),
            markup.results(entry),
        )

    def example(self, model: str) -> tuple[Any, ...]:
        """Drawn references and an instruction, of the kind that the embedded models know; its steps and guidance."""
        instruction, drawn = draw_example(self._drawn)
        self._drawn += 1
        folder = Path(tempfile.mkdtemp(prefix="sigma-app-example-"))
        images = []
        for number, data in enumerate(drawn, 1):
            path = folder / f"example_{number}.png"
            path.write_bytes(data)
            images.append((str(path), path.name))
        sampling = tuple(SAMPLING.values()) if model == EXAMPLE_MODEL else self.usual(model)
        return instruction, *self._images(images), *sampling

    def cards(self, first: int) -> tuple[str, int]:
        """A page of the gallery."""
        ids = self._studio.gallery.ids()
        first = max(0, min(first, (len(ids) - 1) // PAGE * PAGE))
        found: list[Entry] = []
        for name in ids[first : first + PAGE]:
            try:
                found.append(self._studio.entry(name))
            except ConfigError:  # of another version, or damaged: the others are shown
                continue
        return markup.cards(found, len(ids), first), first

    def newer(self, first: int) -> tuple[str, int]:
        """The page before."""
        return self.cards(first - PAGE)

    def older(self, first: int) -> tuple[str, int]:
        """The page after."""
        return self.cards(first + PAGE)
