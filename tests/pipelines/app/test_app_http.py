"""`sigma app` over HTTP: many at once in bounded memory, Ctrl-C in the middle of work, fields nobody filled in."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.app_client import AppClient
from support.app_server import Server

from pipelines.app.gallery import Gallery

pytestmark = pytest.mark.slow

WIDE, HIGH = 3000, 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("http")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(folder, "app", "--model", "tiny-base", "--model", "tiny", "--out", folder / "gallery") as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[AppClient]:
    with AppClient(server.address) as one:
        yield one


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": None}, "Noise levels (steps + 1): has no number: write one from 2 to 100"),
        ({"steps": 1}, "Noise levels (steps + 1): 1 cannot be: write one from 2 to 100"),
        ({"text_scale": None}, "Guidance towards the text: has no number: write one from 1 to 12"),
        ({"image_scale": "x"}, "Guidance towards the references: has no number: write one from 1 to 12"),
        ({"max_tokens": None}, "Longest text answer, in tokens: has no number: write one from 16 to 2048"),
        ({"temperature": 2.5}, "Temperature of a text answer: 2.5 cannot be: write one from 0 to 2"),
        ({"seed": None}, "Seed: has no number: write one of 0 or more"),
        ({"seed": -1}, "Seed: -1 cannot be: write one of 0 or more"),
        ({"size": "many"}, "&quot;Size&quot; many: write WIDTHxHEIGHT in pixels"),
        ({"prompt": None}, "the prompt is empty"),
    ],
)
def test_a_field_that_cannot_be_used_is_said_on_the_page_and_not_in_the_log(
    server: Server, client: AppClient, fields: dict[str, Any], said: str
) -> None:
    state, result = client.made(**fields)
    assert 'role="alert"' in state and said in state and "figure" not in result
    assert "--" not in state  # options are the command's
    assert "Traceback" not in "".join(server.log)


def test_a_file_is_judged_by_its_content_and_a_bad_one_costs_no_other(client: AppClient) -> None:
    image = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).save(image, "PNG")
    shown = client.add(
        ("photo", image.getvalue()),
        ("notes", b"no image at all"),
        ("cup.txt", image.getvalue()),
        ("large.jpg", b"\xff\xd8\xff" + bytes(40_000_000)),
        ("last.png", image.getvalue()),
    )
    assert re.findall('alt="image [0-9], ([^"]*)"', shown) == ["photo", "cup.txt", "last.png"]
    assert [fault.split(":")[0] for fault in re.findall('role="alert">([^<]*)<', shown)] == ["notes", "large.jpg"]
    assert "large.jpg: has more than 32 MiB: make it smaller" in shown


def test_who_asks_a_model_that_cannot_answer_with_text_is_told(client: AppClient) -> None:
    _, result = client.made(answer="Text", max_tokens=16)
    assert "; it has no vision encoder, which text answers are trained with, so its text is most likely noise" in result
    assert "vision encoder" not in client.made()[1]


def test_a_size_that_the_model_does_not_make_is_said_with_the_result(client: AppClient) -> None:
    state, result = client.made(size="1024x768")
    assert "Done; 1024x768 is not a size of tiny-base: made 64x48" in state
    assert "; 1024x768 is not a size of tiny-base: made 64x48</figcaption>" in result
    state, result = client.made(size="64x48", other="tiny")
    assert ">Done<" in state
    assert result.count(" s, 64x48") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_thirty_people_at_once_take_the_memory_of_few(server: Server) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((WIDE, HIGH)).convert("RGB").save(buffer, "PNG")
    decoded = WIDE * HIGH * 3

    def one(number: int) -> str:
        with AppClient(server.address) as page:
            assert "<img" in page.add((f"{number}.png", buffer.getvalue()))
            return page.made(prompt=f"as <image_1> {number}")[0]

    assert "Done" in one(-1)  # all that is loaded once is there
    status, clear = (Path(f"/proc/{server.process.pid}/{name}") for name in ("status", "clear_refs"))
    clear.write_text("5")  # the peak counts from here
    before = resident(status)
    with ThreadPoolExecutor(30) as people:
        states = list(people.map(one, range(30)))
    assert all("Done" in state for state in states), states
    grown = resident(status, "VmHWM") - before
    assert grown < 12 * decoded, f"grown by {grown / decoded:.1f} images: each person has one"


def test_ctrl_c_in_the_middle_of_work_ends_it_and_computes_nothing_more(tmp_path: Path) -> None:
    with Server(tmp_path, "app", "--model", "tiny-base", "--out", tmp_path / "gallery") as server:
        pages = [AppClient(server.address) for _ in range(4)]
        pages[0].begin(steps=100, text_scale=2.0, image_scale=2.0)
        pages[0].until(" of 99")
        for page in pages[1:]:
            page.begin()
            page.until("ahead of you")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(120) == 0
        for page in pages:
            page.close()
    assert "Traceback" not in "".join(server.log)
    gallery = Gallery(tmp_path / "gallery")
    found = [gallery.entry(one) for one in gallery.ids()]
    gallery.close()
    assert sorted(one.state for one in found) == ["interrupted", "interrupted", "interrupted", "stopped"]
    (stopped,) = [one for one in found if one.state == "stopped"]
    assert stopped.message.startswith("stopped at step ") and stopped.message != "stopped at step 99 of 99"


def resident(status: Path, name: str = "VmRSS") -> int:
    """Bytes that a process has in memory now, or had at most (VmHWM)."""
    return int(status.read_text().partition(f"{name}:")[2].split()[0]) * 1024
