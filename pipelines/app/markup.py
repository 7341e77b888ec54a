"""The page's own HTML: instructions coloured as in reports, how they are understood, results and the gallery."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from pipelines.app.config import MAX_IMAGES
from pipelines.app.gallery import DONE, FAILED, Entry, Made, small_name
from pipelines.app.studio import LOADING, QUEUED, RUNNING, Job
from pipelines.common.caveats import BLIND, UNTRAINED
from pipelines.common.inference_config import parse_size
from pipelines.common.made_size import made_size, show_size, size_told
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.images.decode import thumbnail
from sigma_data.instruction import ATTRIBUTES, parse
from sigma_data.token_style import TOKEN_COLOURS, instruction_parts, printable
from sigma_model.sampling.prompt_check import check_prompt

_LONGEST = 4000
_THUMBNAIL = 160


def style() -> str:
    """A rule for each token's colour."""
    return "".join(f".t-{name}{{--token:{colour}}}\n" for name, colour in TOKEN_COLOURS.items())


def coloured(prompt: str, references: int) -> str:
    """An instruction with its tokens and placeholders marked."""
    words = []
    for kind, text in instruction_parts(prompt, references, _LONGEST):
        if kind == "attribute":
            words.append(_token(text))
        elif kind == "image":
            words.append(f'<b class="place">&lt;image_{escape(text)}&gt;</b>')
        else:
            words.append(escape(text))
    return "".join(words)


def token_buttons(references: int) -> str:
    """A button for each attribute token and for each image, which a script inserts where the cursor is."""
    images = "".join(
        f'<button type="button" class="place" data-insert="&lt;image_{number}&gt;"'
        f"{'' if number <= references else ' disabled'}>&lt;image_{number}&gt;</button>"
        for number in range(1, MAX_IMAGES + 1)
    )
    tokens = "".join(
        f'<button type="button" class="token t-{name}" data-insert="&lt;{name}&gt;">&lt;{name}&gt;</button>'
        for name in ATTRIBUTES
    )
    return (
        f'<div role="group" aria-label="Insert an image into the instruction" class="insert">{images}</div>'
        f'<div role="group" aria-label="Insert an attribute token into the instruction" class="insert">{tokens}</div>'
    )


def references(files: Sequence[tuple[str, str]], faults: Sequence[str]) -> str:
    """The uploaded images with their numbers; `faults` of those that were refused."""
    shown = []
    for number, (path, name) in enumerate(files, 1):
        uri = _uri(thumbnail(Path(path).read_bytes(), _THUMBNAIL))
        label = f"image {number}, {printable(name)}"
        shown.append(
            f'<li><img src="{uri}" alt="{escape(label)}"><b class="place">&lt;image_{number}&gt;</b>'
            f'<small>{escape(printable(name))}</small><button type="button" data-remove="{number}" '
            f'aria-label="Remove image {number}">Remove</button></li>'
        )
    refused = "".join(f'<p class="fault" role="alert">{escape(printable(fault))}</p>' for fault in faults)
    return (f'<ol class="references">{"".join(shown)}</ol>' if shown else "") + refused


def understood(prompt: str, count: int, note: str = "") -> str:
    """How an instruction is read: each image with the attribute tokens that refer to it, and what is wrong."""
    if not prompt.strip():
        return '<p class="hint">Write what to make; the images are &lt;image_1&gt;, &lt;image_2&gt; and so on.</p>'
    found = parse(prompt, references=count)
    named = set(found.placeholders)
    before = tuple(number for number in range(1, count + 1) if number not in named)
    groups = found.groups(before=before)
    rows = []
    for number in sorted(named | set(before)):
        tokens = [name for name, image in zip(found.attributes, groups, strict=True) if image == number]
        words = " ".join(map(_token, dict.fromkeys(tokens))) or "no attribute token"
        where = " (not named: it stands before the text)" if number in before else ""
        if not 1 <= number <= count:
            where = f' <span class="fault">there is no image {number}: upload it, or change the number</span>'
        rows.append(f'<li><b class="place">&lt;image_{number}&gt;</b> {words}{where}</li>')
    if loose := [name for name, image in zip(found.attributes, groups, strict=True) if image is None]:
        rows.append(f"<li>of no image: {' '.join(map(_token, loose))}</li>")
    try:
        check_prompt(prompt, count)
        fault = ""
    except ConfigError as error:
        fault = f'<p class="fault">{escape(printable(str(error)))}</p>'
    hint = f'<p class="hint">{escape(note)}</p>' if note else ""
    return f'<p class="instruction">{coloured(prompt, count)}</p><ul>{"".join(rows)}</ul>{fault}{hint}'


def sizes(models: Sequence[str], base: str | None, size: str | None) -> str:
    """What the models make of the size that somebody writes; nothing where they make it as it is."""
    try:
        asked = parse_size(size)
        found = [] if asked is None else [(model, made_size(model, base, asked)) for model in models]
    except (ValueError, SigmaError) as error:
        return f'<p class="fault">{escape(printable(f"Size: {error}"))}</p>'
    told = [f"{model} makes {show_size(made)} of it" for model, made in found if made != asked]
    return f'<p class="hint">{escape(printable("; ".join(told)))}</p>' if told else ""


def answers(models: Sequence[str], base: str | None) -> str:
    """Which of the models have not learnt to answer with text; nothing where all have."""
    from pipelines.common.answerer import sees

    try:
        told = [f"{model} {BLIND}" for model in models if not sees(model, base)]
    except SigmaError:  # said of the model itself once it is asked
        return ""
    return f'<p class="hint">{escape(printable("; ".join(told)))}</p>' if told else ""


def status(job: Job, ahead: int) -> str:
    """Where a job is, in a sentence that changes only with its state, for screen readers."""
    if job.state == QUEUED:
        words = f"Waiting: {ahead} ahead of you" if ahead else "Waiting"
    elif job.state == LOADING:
        words = f"Loading {job.model}"
    elif job.state == DONE:
        words = "; ".join(["Done", *filter(None, (_other_size(job.entry, one) for one in job.entry.made))])
    elif job.state == FAILED:
        words = f"Failed: {job.entry.message}"
    elif job.ended.is_set():
        words = f"Stopped: {job.entry.message}"
    else:
        words = f"Computing with {job.model}"
    return said(words, fault=job.state == FAILED)


def _other_size(entry: Entry, made: Made) -> str:
    """That an image does not have the size that was asked for, if so."""
    asked = entry.ask.size
    return size_told(made.model, asked, made.size) if asked is not None and made.size is not None else ""


def said(words: str, *, fault: bool = False) -> str:
    """A line that screen readers read out."""
    return f'<p role="{"alert" if fault else "status"}"{" class=fault" if fault else ""}>{escape(printable(words))}</p>'


def running(job: Job) -> str:
    """A job at work: its step and the last preview."""
    if not job.steps:
        return ""
    unit = "token" if job.entry.ask.text else "step"
    words = f"{unit} {job.step} of {job.steps}"
    image = ""
    if job.preview is not None:
        image = f'<img class="preview" src="{_uri(job.preview)}" alt="preview at {words}">'
    return f'<progress max="{job.steps}" value="{job.step}" aria-label="{words}"></progress><p>{words}</p>{image}'


def results(entry: Entry) -> str:
    """What was made, side by side."""
    if not entry.made:
        return ""
    return f'<div class="results">{"".join(_figure(entry, one) for one in entry.made)}</div>'


def cards(entries: Sequence[Entry], total: int, first: int) -> str:
    """A page of the gallery, failures among the others."""
    if not total:
        return '<p class="hint">Everything you make is kept here, failures too.</p>'
    shown = "".join(f"<li>{_card(entry)}</li>" for entry in entries)
    return f'<p class="hint">{first + 1} to {first + len(entries)} of {total}</p><ul class="gallery">{shown}</ul>'


def _card(entry: Entry) -> str:
    count = len(entry.ask.images)
    shown = "".join(_small(entry, one) for one in entry.made)
    references = "".join(
        f'<img loading="lazy" src="{_address(Path(image))}" alt="image {number}">'
        for number, image in enumerate(entry.ask.images, 1)
    )
    if entry.state == DONE:
        why = ""
    elif entry.state in (QUEUED, RUNNING):
        why = f'<p class="hint">{entry.state}</p>'
    else:
        told = entry.message or "the server ended before it was done"
        why = f'<p class="fault">{escape(entry.state)}: {escape(printable(told))}</p>'
    models = escape(printable(" and ".join(entry.ask.models)))
    seed = (entry.ask.settings or {}).get("seed", 0)
    return (
        f'<article aria-label="{escape(entry.state)}, {escape(printable(entry.ask.prompt[:80]))}">{shown}{why}'
        f'<p class="instruction">{coloured(entry.ask.prompt, count)}</p><div class="small">{references}</div>'
        f"<p class=hint>{models}, seed {escape(str(seed))}</p>"
        f'<button type="button" data-use="{entry.id}">Use again</button></article>'
    )


def _small(entry: Entry, made: Made) -> str:
    if made.file is None:
        return f"<p>{escape(printable(made.text or ''))}</p>"
    there = entry.path(small_name(made.file))
    return (
        f'<a href="{_address(entry.path(made.file))}" target="_blank"><img loading="lazy" src="{_address(there)}" '
        f'alt="made by {escape(printable(made.model))}: {escape(printable(entry.ask.prompt[:200]))}"></a>'
    )


def _figure(entry: Entry, made: Made) -> str:
    name = escape(printable(made.model))
    caveat = made.caveat or ("" if made.trained else UNTRAINED)  # folders of an earlier version have no caveat
    noise = f"; it {escape(caveat)}" if caveat else ""
    size = "" if made.size is None else f", {show_size(made.size)}"
    if told := _other_size(entry, made):
        size = f"; {escape(printable(told))}"
    if made.file is None:
        shown, save = f'<p class="answer">{escape(printable(made.text or "(an empty answer)"))}</p>', ""
    else:
        address = _address(entry.path(made.file))
        shown = f'<img src="{address}" alt="made by {name}: {escape(printable(entry.ask.prompt[:200]))}">'
        save = f'<a class="button" href="{address}" download="{entry.id}_{made.file}">Download</a>'
    return (
        f"<figure>{shown}<figcaption>{name}, {made.seconds:g} s{size}{noise}</figcaption>"
        f'<div class="actions">{save}<button type="button" data-copy="{escape(made.command)}">'
        f"Copy as command</button></div><code>{escape(printable(made.command))}</code></figure>"
    )


def _token(name: str) -> str:
    return f'<b class="token t-{name}">&lt;{name}&gt;</b>'


def _address(path: Path) -> str:
    return f"gradio_api/file={quote(str(path))}"


def _uri(data: bytes | None) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data or b"").decode()
