"""`sigma browse`: every filter as the manifest says, every image from its shard, nothing from anywhere else."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import corpora, image_files
from support.commands import sigma
from support.page import NEEDS_CHROMIUM, UNLABELLED, after_navigation, click, hosts, open_browser, text, until
from support.places import GOLDEN, ROOT

from pipelines.browse.catalog import Catalog, Filters
from pipelines.browse.corpus_site import CorpusSite
from pipelines.browse.run import EvaluationSite, make_server, open_site
from pipelines.browse.run_site import RunSite
from pipelines.browse.site import NotFoundError, Site
from sigma_data.corpus.corpus import COMMIT, MANIFEST, file_digest, open_corpus
from sigma_data.errors import CorpusError, SigmaError
from tools.screenshots import OUTLINE, take_browse

REMADE = "browse demo/corpus --page '?family=compositional&token=style' --height 900 --out docs/browse.png"
ATTACK = "<img src=x onerror='window.hit=1'>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows; two share a reference, one of them twice; one row is broken, one is an attack in words."""
    folder = tmp_path_factory.mktemp("browse")
    release = corpora.make_release(folder / "release", 12, seed=3)
    shared, attack, broken = (corpora.release_row(seed) for seed in (1, 2, 4))
    other = corpora.release_row(1) | {"instruction_list": [["Paint the <style>whole of <image_1> in red"]]}
    attack["instruction_list"] = [[f"Paint <subject>{ATTACK} in <image_1>"]]
    broken["instruction_list"] = [["Paint the <subjct>thing in <image_1>"]]
    corpora.write_parquet(release / "more" / "chunk_0.parquet", [shared, other, attack, broken])
    corpora.build(folder / "corpus", f"release:{release}", splits={"train": 60, "val": 40})
    return folder / "corpus"


@pytest.fixture(scope="module")
def site(corpus: Path) -> CorpusSite:
    return CorpusSite(open_corpus(corpus))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "images" / "00000300").mkdir(parents=True)
    (folder / "images" / "00000300" / "editing-1.png").write_bytes(image_files.image_bytes("png", 5))
    lines = [
        {"step": step, "non_finite": "", "loss": 1 / step, "image": None if step == 2 else 0.5, "norm": float(step),
         "image/level_0.9": 0.3, "image/token_style": 0.2, "image/editing": 0.4, "text/understanding": 2.0,
         "val/image/level_0.9": 0.25 if step % 100 == 0 else None}
        for step in range(1, 700)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 700, "lo')
    (folder / "texts.jsonl").write_text(json.dumps({"step": 300, "name": "answer", "text": ATTACK}) + "\n")
    (folder / "config.yaml").write_text(f"out: {ATTACK}\n")
    return folder


def page(site: Site, address: str = "/", **query: str) -> str:
    return site.answer([part for part in address.split("/") if part], query).body.decode()


Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def served() -> Iterator[Callable[[Site], Ask]]:
    """Serve a site on a free port; what comes back asks it, with the address exactly as it is given."""
    servers = []

    def serve(site: Site) -> Ask:
        server = make_server(site, "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)

        def ask(address: str, *, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
            connection.putrequest(method, address, skip_host=True)
            connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
            connection.endheaders()
            answer = connection.getresponse()
            found = answer.status, dict(answer.getheaders()), answer.read()
            connection.close()
            return found

        ask.address = f"http://127.0.0.1:{server.server_address[1]}/"  # type: ignore[attr-defined]
        return ask

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_every_filter_finds_what_the_manifest_says(corpus: Path) -> None:
    opened = open_corpus(corpus)
    catalog, manifest = Catalog(opened), opened.manifest
    oracles = {
        "family": pl.col("family"), "split": pl.col("split"), "source": pl.col("source"), "license": pl.col("license"),
    }  # fmt: skip
    for name, column in oracles.items():
        assert dict(catalog.choices[name]) == dict(manifest.group_by(column).len().iter_rows())
        for value, count in catalog.choices[name]:
            rows = manifest.with_row_index("at").filter(column == value)["at"].to_list()
            assert catalog.find(Filters(**{name: value})).tolist() == rows and len(rows) == count
    for token, count in catalog.choices["token"]:
        rows = [at for at, used in enumerate(manifest["attributes"]) if token in used]
        assert catalog.find(Filters(token=token)).tolist() == rows and len(rows) == count
    for code, _ in catalog.choices["check"]:
        rows = [at for at, found in enumerate(manifest["warnings"]) if any(one.startswith(f"{code}:") for one in found)]
        assert catalog.find(Filters(check=code)).tolist() == rows
    both = catalog.find(Filters(family="editing", words="WHOLE OF"))
    assert [catalog.row(int(row))["instruction"] for row in both] == ["Paint the <style>whole of <image_1> in red"]
    assert catalog.find(Filters(words=manifest["id"][4])).tolist() == [4]
    assert catalog.find(Filters(token="nonsense")).tolist() == []


def test_a_sample_is_shown_with_its_groups_and_its_bytes(corpus: Path, site: CorpusSite) -> None:
    opened = open_corpus(corpus)
    row = int(Catalog(opened).find(Filters(family="compositional"))[0])
    sample = opened[row]
    shown = page(site, f"/sample/{row}")
    assert re.search(r'class="token t-subject">&lt;subject&gt;</b> refers to image 1', shown)
    assert re.search(r'class="token t-background">&lt;background&gt;</b> refers to image 2', shown)
    assert f'class="target"><a href="/image/{row}/3"' in shown and sample.source.location in shown
    for image in sample.images:
        answer = site.answer(["image", str(row), str(image.number)], {})
        assert answer.body == image.data and answer.kind.startswith("image/")
        assert site.answer(["image", str(row), str(image.number)], {"small": ""}).kind == "image/jpeg"


def test_what_was_left_out_has_its_reason_and_what_shares_an_image_stands_together(
    corpus: Path, site: CorpusSite
) -> None:
    reasons = page(site, "/quarantine")
    assert "unknown_token" in reasons and "subjct" in reasons and "1 record not written" in reasons
    assert "no record was left out" in page(site, "/quarantine", code="bomb")
    shared = page(site, "/pairs")
    assert "1 component of several samples" in shared and "the same image" in shared
    component = re.search(r"component=(\d+)", shared)
    assert component is not None
    assert "1 to 2 of 2" in page(site, component=component[1])


def test_words_from_outside_are_never_html(site: CorpusSite, run: Path) -> None:
    for shown in (page(site), page(site, words=ATTACK), page(RunSite(run))):
        assert ATTACK not in shown and "onerror" in shown


def test_pages_of_a_long_list_are_cut_and_linked(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.browse.corpus_site.PAGE", 5)
    monkeypatch.setattr("pipelines.browse.site.page_of.__defaults__", (5,), raising=False)
    site = CorpusSite(open_corpus(corpus))
    rows = []
    for number in ("1", "2", "3", "99"):
        rows.append(re.findall(r'href="/sample/(\d+)"', page(site, page=number)))
    assert [len(one) for one in rows] == [5, 5, 5, 5] and rows[3] == rows[2]
    assert sorted(int(row) for one in rows[:3] for row in one) == list(range(15))
    assert 'rel="next" href="/?split=train&amp;page=2"' in page(site, split="train", page="1")


def test_nothing_outside_the_corpus_can_be_fetched(
    corpus: Path, site: CorpusSite, run: Path, served: Callable[[Site], Ask]
) -> None:
    ask = served(site)
    assert ask("/")[0] == 200
    for address in (
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "//etc/passwd", "/corpus.json",
        "/image/0/../../../etc/passwd", "/image/0/..%2f..%2fetc%2fpasswd", "/image/-1/1", "/image/999999/1",
        "/image/0/99", "/image/0/1/2", "/image/٣/1", "/sample/1e9", "/sample/99999999999999999999", "/report/../x",
    ):  # fmt: skip
        status, _, body = ask(address.replace("٣", "%D9%A3"))
        assert (status, body) == (404, b"there is no such page"), address
    assert ask("http://[/")[0] == 400
    (run / "images" / "00000300" / "passwd.png").symlink_to("/etc/passwd")
    (run / "images" / "00000300" / "secret.png").write_text("words")
    other = served(RunSite(run))
    assert other("/step/00000300/editing-1.png")[0] == 200
    for address in ("/step/00000300/passwd.png", "/step/00000300/secret.png", "/step/00000300/..%2f..%2fmetrics.jsonl",
                    "/step/../images/x.png", "/step/00000300/none.png"):  # fmt: skip
        assert other(address)[0] == 404, address


def test_a_report_that_links_out_of_its_folder_is_not_sent(
    corpus: Path, tmp_path: Path, served: Callable[[Site], Ask]
) -> None:
    folder, secret = tmp_path / "linked", tmp_path / "secret"
    shutil.copytree(corpus, folder)
    assert served(CorpusSite(open_corpus(folder)))("/report")[0] == 200
    secret.write_text("words")
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to(secret)
    assert served(CorpusSite(open_corpus(folder)))("/report")[0] == 404
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "results.json").write_text("{}")
    (evaluation / "report.html").symlink_to(secret)
    assert served(open_site(evaluation))("/")[0] == 404


def test_thirty_at_once_get_the_pages_that_one_gets(site: CorpusSite, served: Callable[[Site], Ask]) -> None:
    ask = served(site)
    addresses = ["/", "/quarantine", "/pairs", "/sample/3", "/image/3/1", "/?split=train", "/../../etc/passwd"]
    alone = {address: ask(address)[::2] for address in addresses}
    asked = [addresses[number % len(addresses)] for number in range(30)]
    with ThreadPoolExecutor(30) as pool:
        together = list(pool.map(lambda address: ask(address)[::2], asked))
    assert together == [alone[address] for address in asked]


def test_it_is_read_only_and_answers_its_own_names_alone(
    corpus: Path, site: CorpusSite, served: Callable[[Site], Ask]
) -> None:
    ask = served(site)
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    for method in ("POST", "PUT", "DELETE"):
        assert ask("/", method=method)[0] == 501
    assert ask("/", host="evil.example")[0] == 403
    status, headers, body = ask("/sample/0", method="HEAD")
    assert status == 200 and body == b"" and "default-src 'none'" in headers["Content-Security-Policy"]
    for address in ("/", "/quarantine", "/pairs", "/report", "/sample/3", "/image/3/1"):
        assert ask(address)[0] == 200
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}


def copy_with(corpus: Path, out: Path, rows: int | None = None, **changed: pa.Array) -> Path:
    """The corpus with other values in its manifest, committed as if they were right."""
    out.mkdir()
    for path in corpus.iterdir():
        if path.name not in (COMMIT, MANIFEST):
            (out / path.name).symlink_to(path)
    table = pq.read_table(corpus / MANIFEST).slice(0, rows)
    for name, values in changed.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), [values])
    pq.write_table(table, out / MANIFEST)
    commit = json.loads((corpus / COMMIT).read_text())
    size, digest = file_digest(out / MANIFEST)
    commit["files"][MANIFEST] = {"bytes": size, "sha256": digest}
    (out / COMMIT).write_text(json.dumps(commit))
    return out


def test_a_manifest_that_leads_elsewhere_is_refused_and_damage_is_told(corpus: Path, tmp_path: Path) -> None:
    rows = len(open_corpus(corpus).manifest)
    for shard in ("../secret.tar", "/etc/passwd", "train/../../x-00000.tar"):
        hostile = copy_with(corpus, tmp_path / f"h{len(shard)}", shard=pa.array([shard] * rows))
        with pytest.raises(CorpusError, match="names the shard"):
            open_site(hostile)
    beyond = CorpusSite(open_corpus(copy_with(corpus, tmp_path / "beyond", json_offset=pa.array([2**40] * rows))))
    with pytest.raises(CorpusError, match="cannot be read"):
        beyond.answer(["sample", "0"], {})
    (tmp_path / "beyond" / MANIFEST).write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match="is not the file that was committed"):
        open_site(tmp_path / "beyond")


def test_a_run_shows_its_losses_images_and_texts(run: Path) -> None:
    shown = page(RunSite(run))
    for title in (
        "Loss",
        "by noise level",
        "by attribute token",
        "loss by family",
        "Gradient norm",
        "Held-out image loss by noise level",
    ):
        assert title in shown
    assert "699 steps" in shown and "0.9: 0.3" in shown and "style: 0.2" in shown
    points = max(re.findall(r'points="([^"]+)"', shown), key=len).split()
    assert 200 <= len(points) <= 300  # 699 steps, thinned
    assert 'src="/step/00000300/editing-1.png"' in shown
    (run / "metrics.jsonl").write_text("")
    assert "No step is written down yet" in page(RunSite(run))


def test_a_place_is_told_by_its_files(run: Path, tmp_path: Path) -> None:
    assert isinstance(open_site(run), RunSite)
    assert isinstance(open_site(GOLDEN / "older_corpus"), CorpusSite)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "report.html").write_text("<p>report</p>")
    (folder / "results.json").write_text("{}")
    found = open_site(folder)
    assert isinstance(found, EvaluationSite) and page(found) == "<p>report</p>"
    with pytest.raises(NotFoundError):
        found.answer(["results.json"], {})
    (folder / "report.html").unlink()
    with pytest.raises(SigmaError, match=r"is neither a corpus .*\(results.json\)$"):
        open_site(folder)
    (folder / "index.html").write_text("a sheet of generate --from")
    with pytest.raises(SigmaError, match="; open .*index.html in a browser$"):
        open_site(folder)
    ended = sigma("browse", tmp_path / "none")
    assert ended.returncode == 2 and ended.stderr == f"sigma: {tmp_path / 'none'}: no such folder\n"


def test_a_corpus_without_a_sample_can_be_looked_at(corpus: Path, tmp_path: Path) -> None:
    site = CorpusSite(open_corpus(copy_with(corpus, tmp_path / "empty", rows=0)))
    assert "no sample passes" in page(site) and "No two samples share" in page(site, "/pairs")


class TestInChromium:
    pytestmark = NEEDS_CHROMIUM

    def test_the_picture_in_the_docs_shows_the_page_as_it_is(
        self, site: CorpusSite, tmp_path: Path, served: Callable[[Site], Ask]
    ) -> None:
        address: str = served(site).address  # type: ignore[attr-defined]
        with open_browser() as browser:
            outline = take_browse(browser, address, tmp_path / "browse.png")
        assert {"Samples", "Quarantine", "Family", "Filter"} <= set(outline.splitlines()), outline
        with Image.open(tmp_path / "browse.png") as new, Image.open(ROOT / "docs" / "browse.png") as kept:
            assert new.size == kept.size
            assert kept.info.get(OUTLINE) == new.info[OUTLINE], f"python -m tools.screenshots {REMADE}"

    def test_it_is_read_on_a_phone_and_by_keyboard_and_loads_nothing_else(
        self, site: CorpusSite, run: Path, served: Callable[[Site], Ask]
    ) -> None:
        address: str = served(site).address  # type: ignore[attr-defined]
        with open_browser() as browser:
            browser.view(360, 740, phone=True)
            for place in ("", "sample/0", "quarantine", "pairs"):
                browser.open(address + place)
                assert browser.run("document.scrollingElement.scrollWidth") == 360, place
                assert browser.run(UNLABELLED) == [], place
            browser.open(address)
            assert browser.run("[...document.images].every((one) => one.loading === 'lazy')")
            until(browser, "document.images[0].naturalWidth > 0")
            browser.run("document.querySelector('select[name=token]').value = 'style'")
            browser.run("document.querySelector('form button').focus()")
            browser.press("Enter", 13, "\r")
            after_navigation(
                browser, "location.search.includes('token=style') && document.querySelector('.cards .t-style')"
            )
            colour = browser.run("getComputedStyle(document.querySelector('.cards .t-style')).backgroundColor")
            assert colour == "rgb(169, 58, 232)"
            assert browser.run("window.hit === undefined")
            browser.open(served(RunSite(run)).address)  # type: ignore[attr-defined]
            assert browser.run("document.scrollingElement.scrollWidth") == 360
            assert browser.errors == []
            assert {host.split(":")[0] for host in hosts(browser)} == {"127.0.0.1"}

    def test_the_quarantine_and_samples_that_share_an_image_are_clicked_through(
        self, site: CorpusSite, served: Callable[[Site], Ask]
    ) -> None:
        address: str = served(site).address  # type: ignore[attr-defined]
        with open_browser() as browser:
            browser.view(1280, 900)
            browser.open(address)
            click(browser, "header a[href='/quarantine']")
            after_navigation(browser, "document.querySelector('tbody tr')?.innerText.includes('unknown_token')")
            assert "subjct" in text(browser, "tbody tr")
            browser.run("document.querySelector('select[name=code]').value = 'unknown_token'")
            click(browser, "form button")
            after_navigation(
                browser, "location.search.includes('code=unknown_token') && document.querySelector('td b')"
            )
            assert browser.run("[...document.querySelectorAll('td b')].map((one) => one.innerText)") == [
                "unknown_token"
            ]
            click(browser, "form a")
            after_navigation(browser, "location.search === '' && document.querySelector('td b')")
            click(browser, "header a[href='/pairs']")
            after_navigation(browser, "document.querySelectorAll('.cards figure img').length >= 2")
            assert text(browser, "h2") == "2 samples" and text(browser, ".cards li p") == "the same image"
            until(browser, "[...document.images].every((one) => one.naturalWidth > 0)")
            row = browser.run("document.querySelector('.cards figure a').pathname")
            click(browser, ".cards figure a")
            after_navigation(browser, f"location.pathname === '{row}' && document.querySelector('.instruction')")
            browser.run("history.back()")
            after_navigation(browser, "location.pathname === '/pairs' && document.querySelector('h2 a')")
            click(browser, "h2 a")
            after_navigation(browser, "document.querySelector('.pager')?.innerText.includes('1 to 2 of 2')")
            assert browser.errors == []
            assert {host.split(":")[0] for host in hosts(browser)} == {"127.0.0.1"}
