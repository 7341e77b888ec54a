"""`sigma app` in a real browser, with the embedded model: what somebody who composes an image sees and does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support import image_files
from support.app_server import Server
from support.page import NEEDS_CHROMIUM, UNLABELLED, Browser, click, hosts, open_browser, text, type_into, until, upload
from support.places import ROOT

from pipelines.app.gallery import Gallery
from tools.screenshots import OUTLINE, take_app

pytestmark = NEEDS_CHROMIUM

INPUT = "#upload input[type=file]"
SETTLED = "!document.querySelector('#progress progress') && document.querySelector('#state').innerText"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(folder, "app", "--model", "tiny-base", "--model", "tiny", "--out", folder / "gallery") as one:
        yield one


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Browser]:
    with open_browser() as one:
        one.view(1280, 900)
        one.open(server.address)
        until(one, "document.querySelector('#gallery .hint')")
        yield one


def shown_images(page: Browser) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('#references img')].map((one) => one.alt)")
    return found


def set_steps(page: Browser, steps: int) -> None:
    if not page.run("!!document.querySelector('#steps input[type=number]')?.offsetParent"):
        click(page, "#sampling button")
        until(page, "document.querySelector('#steps input[type=number]')?.offsetParent")
    type_into(page, "#steps input[type=number]", str(steps))
    page.run("document.querySelector('#steps input[type=number]').blur()")


def test_images_are_uploaded_and_tokens_inserted(page: Browser, folder: Path) -> None:
    files = [folder / "cup.png", folder / "table.jpg"]
    files[0].write_bytes(image_files.image_bytes("png", 1, width=90, height=64))
    files[1].write_bytes(image_files.image_bytes("jpeg", 2, width=64, height=80))
    upload(page, INPUT, files)
    until(page, "document.querySelectorAll('#references img').length === 2")
    assert shown_images(page) == ["image 1, cup.png", "image 2, table.jpg"]
    assert page.run("document.querySelectorAll('#tokens button:not(:disabled)').length") == 2 + 15
    type_into(page, "#prompt textarea", "Put")
    click(page, "#tokens [data-insert='<subject>']")
    page.call("Input.insertText", text="the cup")
    click(page, "#tokens [data-insert='<image_1>']")
    page.call("Input.insertText", text="in the style of")
    click(page, "#tokens [data-insert='<style>']")
    click(page, "#tokens [data-insert='<image_2>']")
    wanted = "Put <subject> the cup <image_1> in the style of <style> <image_2> "
    assert page.run("document.querySelector('#prompt textarea').value") == wanted
    rows = until(
        page,
        """(() => { const rows = [...document.querySelectorAll('#understood li')].map((row) => row.innerText);
        return rows.length === 2 && !rows.join().includes('before') && rows; })()""",
    )
    assert [" ".join(row.split()) for row in rows] == ["<image_1> <subject>", "<image_2> <style>"]
    colour = page.run("getComputedStyle(document.querySelector('#understood .t-style')).backgroundColor")
    assert colour == "rgb(169, 58, 232)"  # as in reports


def test_an_image_is_made_shown_and_kept(page: Browser) -> None:
    set_steps(page, 4)
    click(page, "#generate")
    assert until(page, "document.querySelector('#result img') && " + SETTLED) == "Done"
    page.run("document.querySelector('#result img').decode().then(() => 0)")
    assert page.run("document.querySelector('#result img').naturalWidth") > 0
    assert text(page, "#result code").startswith("sigma generate 'Put <subject> the cup <image_1>")
    save = page.run("fetch(document.querySelector('#result a[download]').href).then((r) => r.text())")
    assert "PNG" in save and '"prompt": "Put <subject>' in save  # the file says how it was made
    assert page.run("document.querySelectorAll('#gallery article').length") == 1


def test_two_models_stand_side_by_side(page: Browser) -> None:
    page.run("document.querySelector('#other input').focus()")
    click(page, "#other input")
    page.run("""{ const box = document.querySelector('#other input');
        box.dispatchEvent(new MouseEvent('mousedown', { bubbles: true })); }""")
    until(page, "document.querySelector('ul[role=listbox] li')")
    page.run("""[...document.querySelectorAll('ul[role=listbox] li')].find((one) => one.innerText.trim().endsWith('tiny'))
        .dispatchEvent(new MouseEvent('mousedown', { bubbles: true, cancelable: true }))""")
    click(page, "#generate")
    until(page, "document.querySelectorAll('#result figure').length === 2 && " + SETTLED)
    assert "no trained weights" in text(page, "#result figure:last-child figcaption")


def test_a_stopped_run_ends_and_is_kept(page: Browser, folder: Path) -> None:
    set_steps(page, 100)
    click(page, "#generate")
    until(page, "document.querySelector('#progress img')")  # a preview
    click(page, "#stop")
    assert until(page, SETTLED + ".startsWith('Stopped') && document.querySelector('#state').innerText")
    first = until(page, "document.querySelector('#gallery article').innerText")
    assert "stopped at step" in first
    assert page.run("document.querySelectorAll('#gallery article').length") == 3


def test_bad_uploads_are_named_and_the_good_ones_stay(page: Browser, folder: Path) -> None:
    bad = {
        "words.png": b"no image at all\n" * 9,
        "huge.png": image_files.huge_png(30_000, 30_000),
        "half.jpg": image_files.image_bytes("jpeg", 3, width=200, height=200)[:2000],
        "notes": b"words without an ending\n",
        "large.jpg": b"\xff\xd8\xff" + bytes(40_000_000),
    }
    photo = folder / "photo"
    photo.write_bytes(image_files.image_bytes("jpeg", 4, width=60, height=60))
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    upload(page, INPUT, [photo, *(folder / name for name in bad)])
    faults = until(
        page,
        """(() => { const found = [...document.querySelectorAll('#references .fault')].map((one) => one.innerText);
        return found.length === 5 && found; })()""",
    )
    assert [fault.split(":")[0] for fault in faults] == list(bad)
    assert "more than the limit" in faults[1] or "announces more than" in faults[1]
    assert faults[4] == "large.jpg: has more than 32 MiB: make it smaller"
    assert shown_images(page) == ["image 1, cup.png", "image 2, table.jpg", "image 3, photo"]
    assert not page.run("!!document.querySelector('[data-testid=toast-body]')")  # gradio has words of its own


def test_who_chooses_text_is_told_which_model_cannot_answer_so(page: Browser) -> None:
    click(page, "#answer input[value=Text]")
    told = until(page, "document.querySelector('#blind .hint')?.innerText")
    assert told.startswith("tiny-base has no vision encoder") and "; tiny " not in told  # that one has
    click(page, "#answer input[value=Image]")
    until(page, "!document.querySelector('#blind .hint')")


def test_a_result_is_used_again_and_an_image_removed(page: Browser) -> None:
    type_into(page, "#prompt textarea", "something else")
    click(page, "#gallery li:last-child [data-use]")
    until(page, "document.querySelector('#prompt textarea').value.startsWith('Put <subject>')")
    click(page, "#references [data-remove='1']")
    until(page, "document.querySelectorAll('#references img').length === 1")
    assert "there is no image 2" in until(
        page,
        """document.querySelector('#understood').innerText.includes('no image 2')
        && document.querySelector('#understood').innerText""",
    )


def test_the_keyboard_reaches_everything_and_all_of_it_has_a_name(page: Browser) -> None:
    assert page.run(UNLABELLED) == []
    page.run("document.querySelector('#prompt textarea').focus()")
    page.press("Tab", 9)
    assert page.run("document.activeElement.dataset.insert") == "<image_1>"
    page.press("Enter", 13, "\r")
    assert page.run("document.querySelector('#prompt textarea').value").count("<image_1>") == 2
    assert page.run("document.activeElement.closest('#prompt') !== null")  # one goes on writing


def test_nothing_sticks_out_on_a_phone(page: Browser) -> None:
    page.view(360, 740, phone=True)
    try:
        assert page.run("document.scrollingElement.scrollWidth") == 360
    finally:
        page.view(1280, 900)


def test_nothing_was_asked_of_others_and_no_error_was_logged(page: Browser, server: Server) -> None:
    assert hosts(page) == {server.address.split("/")[2]}
    assert page.errors == []
    assert server.fenced == ""
    assert "Traceback" not in "".join(server.log)


def test_the_picture_in_the_docs_shows_the_page_as_it_is(tmp_path: Path) -> None:
    with Server(tmp_path, "app", "--out", tmp_path / "gallery") as server, open_browser() as page:
        outline = take_app(page, server.address, tmp_path / "app.png")
    assert {"Generate", "Gallery", "Done", "Copy as command"} <= set(outline.splitlines()), outline
    with Image.open(tmp_path / "app.png") as new, Image.open(ROOT / "docs" / "app.png") as kept:
        assert new.size == kept.size
        assert kept.info.get(OUTLINE) == new.info[OUTLINE], "python -m tools.screenshots app --out docs/app.png"


def test_a_page_that_is_left_stops_what_it_asked_for(page: Browser, server: Server, folder: Path) -> None:
    click(page, "#gallery li:last-child [data-use]")
    until(page, "document.querySelectorAll('#references img').length === 2")
    set_steps(page, 100)
    click(page, "#generate")
    until(page, "document.querySelector('#progress progress')")
    newest = max(path for path in (folder / "gallery").iterdir() if path.is_dir())
    page.open("about:blank")
    for _ in range(1200):
        if (newest / "result.json").exists():
            break
        page.run("new Promise((done) => setTimeout(() => done(0), 50))")
    assert "stopped at step" in (newest / "result.json").read_text()
    page.open(server.address)
    until(page, "document.querySelectorAll('#gallery article').length === 4")


def test_a_killed_server_loses_nothing(page: Browser, server: Server, folder: Path) -> None:
    click(page, "#gallery li:last-child [data-use]")
    until(page, "document.querySelectorAll('#references img').length === 2")
    set_steps(page, 100)
    before = page.run("document.querySelectorAll('#gallery article').length")
    click(page, "#generate")
    until(page, "document.querySelector('#progress progress')")
    server.kill()
    gallery = Gallery(folder / "gallery")
    found = [gallery.entry(one) for one in gallery.ids()]
    gallery.close()
    assert [one.state for one in found] == ["interrupted", "stopped", "stopped", "done", "done"] and before == 4
    assert all(Path(image).is_file() for one in found for image in one.ask.images)
