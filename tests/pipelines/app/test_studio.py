"""The app without its page: one request after the other, everything kept, a clear message for what cannot be used."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import image_files
from support.commands import sigma

from pipelines.app import markup
from pipelines.app.ask import CACHES, SAMPLING, Ask, defaults_of
from pipelines.app.config import WAITING, AppConfig
from pipelines.app.gallery import ASK, RESULT, Gallery
from pipelines.app.guard import POLICY, Guard
from pipelines.app.numbers import in_fields
from pipelines.app.studio import Job, Studio
from pipelines.common.loopback import hosts_of
from sigma_data.errors import ConfigError
from sigma_model.sampling.generate import Request

PROMPT = "Put <subject>the cup <image_1> on <background>the table <image_2>"


class Painter:
    """An answerer whose every step waits for `gate`; counts steps, and how many compute at once."""

    name, trained, steps, caveat = "painter", True, 4, ""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.computed: list[str] = []
        self.at_once = self.most_at_once = 0
        self.fault: Exception | None = None

    def open(self) -> None:
        self.gate.release(10_000)

    def check(self, request: Request) -> None:
        pass

    def images(self, requests: Sequence[Request], progress: Any, preview: Any) -> list[Image.Image]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for step in range(1, self.steps + 1):
                self.begun.release()
                self.gate.acquire()
                self.computed.append(requests[0].prompt)
                if self.fault is not None:
                    raise self.fault
                preview(lambda: [Image.new("RGB", (600, 300), "red")])
                progress(step, self.steps)
            return [Image.new("RGB", (40, 20), "blue")]
        finally:
            self.at_once -= 1

    def texts(self, requests: Sequence[Request], progress: Any) -> list[str]:
        return ["two <b>cats</b>"]

    def asked_otherwise(self, config: Any, *, text: bool) -> Painter:
        return self

    def write(self, image: Image.Image, path: Path, request: Request) -> None:
        image.save(path)


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
def studio(tmp_path: Path, painter: Painter) -> Iterator[Studio]:
    config = AppConfig(models=("tiny-base", "tiny"), out=tmp_path / "gallery")
    one = Studio(config, Gallery(config.out), load=lambda _config: painter)
    yield one
    painter.open()
    one.close()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "cup.png", tmp_path / "table.jpg"]
    found[0].write_bytes(image_files.image_bytes("png", 1, width=40, height=30))
    found[1].write_bytes(image_files.image_bytes("jpeg", 2, width=30, height=40))
    return found


def ask_of(images: Sequence[Path], **changes: Any) -> Ask:
    ask = Ask(PROMPT, tuple(map(str, images)), tuple(one.name for one in images), ("tiny-base",), False, {"seed": 3})
    return replace(ask, **changes)


def ended(job: Job) -> Job:
    assert job.ended.wait(60)
    return job


def test_a_result_is_kept_with_all_it_was_made_from(studio: Studio, painter: Painter, images: list[Path]) -> None:
    painter.open()
    job = ended(studio.submit(ask_of(images, models=("tiny-base", "tiny"))))
    assert job.state == "done" and job.preview is not None
    assert max(Image.open(io.BytesIO(job.preview)).size) == 512
    for original in images:
        original.unlink()
    kept = studio.gallery.entry(job.entry.id)
    assert kept == job.entry
    assert [one.model for one in kept.made] == ["tiny-base", "tiny"]
    assert all(kept.path(str(one.file)).is_file() for one in kept.made)
    assert [Path(image).is_file() for image in kept.ask.images] == [True, True]
    page = markup.results(kept) + markup.cards([kept], 1, 0)
    assert page.count("Copy as command") == 2 and "Use again" in page and "40x20" in page
    older = json.loads(kept.path(RESULT).read_text())
    for one in older["made"]:
        del one["size"], one["caveat"]  # as an earlier version wrote it
    kept.path(RESULT).write_text(json.dumps(older))
    assert [one.size for one in studio.gallery.entry(kept.id).made] == [None, None]


@pytest.mark.slow
def test_the_command_makes_the_same_image(tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = AppConfig(models=("tiny",), out=tmp_path / "gallery", dtype="float32")
    real = Studio(config, Gallery(config.out))
    try:
        settings = {"seed": 5, "steps": 3, "text_scale": 1.5, "image_scale": 2.0, "size": "32x32", "group_mask": False}
        job = ended(real.submit(ask_of(images, models=("tiny",), settings=settings)))
        assert job.state == "done", job.entry.message
    finally:
        real.close()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(job.entry.made[0].command)
    assert "--no-group-mask" in words and "--image-scale" not in words  # defaults are left out
    assert sigma(*words[1:]).returncode == 0
    mine, commands = (Image.open(path) for path in (job.entry.path("result_1.png"), tmp_path / "out.png"))
    assert mine.tobytes() == commands.tobytes()
    about = json.loads(mine.info["sigma"])
    assert about["prompt"] == PROMPT and [one["name"] for one in about["pictures"]] == ["cup.png", "table.jpg"]


def test_thirty_at_once_are_computed_one_after_the_other_and_none_is_lost(
    studio: Studio, painter: Painter, images: list[Path]
) -> None:
    jobs: list[Job] = []
    prompts = [f"{PROMPT} {number}" for number in range(30)]
    threads = [
        threading.Thread(target=lambda p=prompt: jobs.append(studio.submit(ask_of(images, prompt=p))))
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(studio.ahead(job) for job in jobs) == 29
    painter.open()
    assert {ended(job).state for job in jobs} == {"done"}
    assert painter.most_at_once == 1
    assert sorted({studio.gallery.entry(one).ask.prompt for one in studio.gallery.ids()}) == sorted(prompts)


def test_a_full_line_is_refused_in_words(studio: Studio, painter: Painter, images: list[Path]) -> None:
    studio.submit(ask_of(images[:1], prompt="<image_1>"))
    painter.begun.acquire()
    for _ in range(WAITING):
        studio.submit(ask_of([], prompt="a cup"))
    with pytest.raises(ConfigError, match="40 requests wait already"):
        studio.submit(ask_of([], prompt="a cup"))


def test_what_is_stopped_computes_no_further_step(studio: Studio, painter: Painter, images: list[Path]) -> None:
    job, waiting, last = (studio.submit(ask_of([], prompt=prompt)) for prompt in ("first", "second", "third"))
    painter.begun.acquire()
    studio.stop(waiting)
    assert ended(waiting).state == "stopped"
    studio.stop(job)
    painter.open()
    assert ended(job).state == "stopped" and ended(last).state == "done"
    assert painter.computed == ["first"] + ["third"] * 4
    assert studio.gallery.entry(job.entry.id).message == "stopped at step 1 of 4"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ConfigError("the sampler ended in numbers that are not finite"), "not finite"),
        (RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"), "there is not enough memory for this"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_failure_is_kept_and_the_next_request_is_answered(
    studio: Studio, painter: Painter, fault: Exception, words: str
) -> None:
    painter.open()
    painter.fault = fault
    failed = ended(studio.submit(ask_of([], prompt="a cup")))
    painter.fault = None
    assert ended(studio.submit(ask_of([], prompt="a cup"))).state == "done"
    kept = studio.gallery.entry(failed.entry.id)
    assert kept.state == "failed" and words in kept.message
    assert words in markup.status(failed, 0) and words in markup.cards([kept], 1, 0)


def test_an_option_is_named_by_its_field(studio: Studio, painter: Painter) -> None:
    painter.open()
    painter.fault = ConfigError("too long: use a smaller --max-tokens, --no-group-mask, or --dtype float32")
    message = ended(studio.submit(ask_of([], prompt="a cup"))).entry.message
    assert message == (
        'too long: use a smaller "Longest text answer, in tokens", "Group mask", or sigma app --dtype float32'
    )
    assert in_fields("see `sigma export RUN --out MODEL`, a-size") == "see `sigma export RUN --out MODEL`, a-size"
    assert [one for one in SAMPLING if not in_fields("--" + one.replace("_", "-")).startswith(chr(34))] == []


@pytest.mark.parametrize(("text", "ending"), [(True, "--max-tokens 7 --text"), (False, "--steps 9 --out out.png")])
def test_the_command_line_has_the_settings_of_what_is_asked_for(text: bool, ending: str) -> None:
    ask = ask_of([], text=text, settings={"seed": 3, "steps": 9, "max_tokens": 7})
    assert ask.command("tiny-base", {}) == f"sigma generate '{PROMPT}' --model tiny-base --seed 3 {ending}"


def test_a_text_answer_is_kept_and_never_read_as_html(studio: Studio) -> None:
    job = ended(studio.submit(ask_of([], prompt="how many cats? <script src=x>", text=True)))
    assert job.entry.made[0].text == "two <b>cats</b>" and job.entry.made[0].command.endswith("--text")
    page = markup.results(job.entry) + markup.cards([job.entry], 1, 0)
    assert "two &lt;b&gt;cats" in page and "<script" not in page


def bad_files() -> dict[str, tuple[Callable[[], bytes], str]]:
    return {
        "words.png": (lambda: b"no image at all, words\n" * 9, "words.png: "),
        "huge.png": (lambda: image_files.huge_png(30_000, 30_000), "30000 x 30000|announces more than"),
        "half.jpg": (lambda: image_files.image_bytes("jpeg", 3, width=200, height=200)[:2000], "half.jpg: .*truncated"),
        "large.jpg": (lambda: b"\xff\xd8\xff" + bytes(40_000_000), "large.jpg: has more than 32 MiB"),
        "empty.png": (lambda: b"", "empty.png: the image has no bytes"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_an_image_that_cannot_be_used_is_named_and_nothing_is_begun(studio: Studio, tmp_path: Path, name: str) -> None:
    make, words = bad_files()[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ConfigError, match=words):
        studio.submit(ask_of([tmp_path / name], prompt="<image_1>"))
    assert studio.gallery.ids() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "<subjct>cup <image_1>"}, "did you mean <subject>"),
        ({"models": ("elsewhere",)}, "elsewhere: is not served here"),
        ({"models": ()}, "choose a model"),
        ({"settings": {"size": "many"}}, "WIDTHxHEIGHT"),
        ({"settings": {"steps": 0.5}}, "steps"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(studio: Studio, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        studio.submit(ask_of([], **{"prompt": "a cup", **changes}))


def test_what_was_begun_when_the_server_ended_is_there_as_interrupted(
    studio: Studio, painter: Painter, images: list[Path]
) -> None:
    job = studio.submit(ask_of(images))
    painter.begun.acquire()
    found = studio.gallery.entry(job.entry.id)  # as another server finds the folder
    assert found.state == "interrupted" and found.ask.prompt == PROMPT
    assert "the server ended before it was done" in markup.cards([found], 1, 0)


def test_the_gallery_tells_what_waits_and_what_is_at_work_from_what_was_interrupted(
    studio: Studio, painter: Painter, images: list[Path]
) -> None:
    now, waiting, stopped = (studio.submit(ask_of([], prompt=prompt)) for prompt in ("now", "then", "never"))
    painter.begun.acquire()
    studio.stop(stopped)
    found = [studio.entry(job.entry.id) for job in (now, waiting, stopped)]
    assert [one.state for one in found] == ["running", "waiting", "stopped"]
    for one in found[:2]:
        page = markup.cards([one], 1, 0)
        assert f'<p class="hint">{one.state}</p>' in page and "fault" not in page and "server ended" not in page
    painter.open()
    assert ended(now).state == ended(waiting).state == "done"
    assert [studio.entry(job.entry.id).state for job in (now, waiting)] == ["done", "done"]


def test_a_gallery_is_for_one_server_and_for_results_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other things"):
        Gallery(tmp_path / "other")
    first = Gallery(tmp_path / "mine")
    with pytest.raises(ConfigError, match="another sigma app is running there"):
        Gallery(tmp_path / "mine")
    for name in ("../other", "/etc", "", "20260101-000000-000-abcdef/../../other"):
        with pytest.raises(ConfigError, match="no such result"):
            first.entry(name)
    damaged = first.begin(Ask("a cup", models=("tiny",), settings={}))
    for file in (RESULT, ASK):
        damaged.path(file).write_text('{"state": ')
        with pytest.raises(ConfigError, match="cannot be read"):
            first.entry(damaged.id)
    first.close()


def test_the_page_says_which_token_belongs_to_which_image() -> None:
    page = markup.understood("<subject>cup in <image_1> <style> <image_3> <pose>", 2)
    rows = [row.partition("</li>")[0] for row in page.split("<li>")[1:]]
    assert [("image_1" in row, "image_2" in row, "image_3" in row) for row in rows] == [
        (True, False, False), (False, True, False), (False, False, True)
    ]  # fmt: skip
    assert "&lt;subject&gt;" in rows[0] and "stands before the text" in rows[1]
    assert "&lt;style&gt;" in rows[2] and "&lt;pose&gt;" in rows[2] and "there is no image 3" in rows[2]
    assert "of no image" in markup.understood("<lighting>warm", 0)
    assert "<img" not in markup.understood("<img src=x onerror=alert(1)>", 0)


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("127.0.0.1:7860", "/", 200),
        ("localhost", "/", 200),
        ("[::1]:7860", "/", 200),
        ("evil.example", "/", 403),
        ("127.0.0.1", "/gradio_api/file=https://evil.example/x", 403),
        ("127.0.0.1", "/gradio_api/file%3Dhttps://evil.example/x", 403),
    ],
)
def test_only_this_hosts_names_are_answered_and_nothing_is_loaded_from_elsewhere(
    host: str, path: str, status: int
) -> None:
    sent: list[dict[str, Any]] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"host", host.encode())]}
    asyncio.run(Guard(page, hosts_of("127.0.0.1"))(scope, None, keep))  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    assert (b"content-security-policy", POLICY.encode()) in sent[0]["headers"]
    assert hosts_of("192.168.0.7") is None


def test_an_upload_that_is_over_is_no_error_in_the_page() -> None:
    sent: list[dict[str, Any]] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"not there"})

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/gradio_api/upload_progress", "headers": []}
    asyncio.run(Guard(page, None)(scope, None, keep))  # type: ignore[arg-type]
    assert sent[0]["status"] == 200 and b"content-length" not in dict(sent[0]["headers"])
    assert sent[1]["body"] == b'data: {"msg": "done"}\n\n'


@pytest.mark.skipif(not CACHES, reason="the sampler leaves nothing out")
def test_steps_left_out_are_asked_for_as_the_command_does() -> None:
    usual = defaults_of("tiny-base")
    ask = Ask("a cup", models=("tiny-base",), settings={**usual, "cache": "taylor"})
    assert "--cache taylor" in ask.command("tiny-base", {}) and ask.config("tiny-base", {}).cache == "taylor"
    assert "--cache" not in replace(ask, settings=usual).command("tiny-base", {})


def test_an_example_comes_with_the_sampling_that_its_model_does_best_with(studio: Studio) -> None:
    from pipelines.app.page import _Desk

    desk = _Desk(studio)
    instruction, *_, steps, text, image = desk.example("tiny-base")
    assert "<image_1>" in instruction and (steps, text, image) == (9, 2.0, 1.2)
    usual = defaults_of("tiny")
    assert desk.example("tiny")[-3:] == (usual["steps"], usual["text_scale"], usual["image_scale"])


def test_without_gradio_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.app.run.find_spec", lambda _name: None)
    found = sigma("app", "--out", tmp_path / "gallery")
    assert found.returncode == 2 and "pip install 'sigma-multimodal[app]'" in found.stderr


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    for words, told in (
        (["--model", str(tmp_path / "none")], "none"),
        (["--model", "tiny", "--model", "tiny"], "--model tiny is given twice"),
        (["--out", __file__], "is a file"),
        (["--adapter", __file__], "is a file and no folder: name the folder that holds adapter_config.json"),
    ):
        found = sigma("app", *words)
        assert found.returncode == 2 and told in found.stderr and found.stderr.count("\n") == 1, found.stderr
