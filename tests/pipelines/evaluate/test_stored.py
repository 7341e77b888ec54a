"""Images stay in files: the same items as with their images, and never more than a few images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import eval_runs, image_files

from pipelines.evaluate import stored
from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks import Benchmark, open_benchmark
from pipelines.evaluate.generate import request_of, results
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.fidelity import Psnr
from pipelines.evaluate.questions import QuestionSet, limited
from pipelines.evaluate.report.thumbnails import thumbnails
from pipelines.evaluate.run_folder import digest_of_items
from pipelines.evaluate.score import digest, score_metric
from pipelines.evaluate.stored import StoredBytes, bytes_of, image_store
from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json


class Counted(bytes):
    """Bytes that know how many of their kind there are, and were at most."""

    now = most = 0

    def __init__(self, _data: bytes) -> None:
        Counted.now += 1
        Counted.most = max(Counted.most, Counted.now)

    def __del__(self) -> None:
        Counted.now -= 1


class Asked(Benchmark):
    name, version, answers = "asked", "1", "image"
    metrics: tuple[MetricInfo, ...] = ()

    def __init__(self, count: int, wrap: type[bytes] = bytes) -> None:
        self.count, self.wrap = count, wrap

    def iter_items(self) -> Iterator[Item]:
        for number in range(self.count):
            shown, answer = (image_files.image_bytes("png", 2 * number + k, width=24, height=16) for k in (0, 1))
            family = "selective" if number % 3 else "layout"
            yield Item(str(number), family, "paint <image_1>", (self.wrap(shown),), answer=self.wrap(answer))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What was generated for eight items, in batches of four."""
    for number in range(2):
        place = tmp_path / "generated" / f"batch-{number:06d}"
        place.mkdir(parents=True)
        index = []
        for which in range(4):
            (place / f"{which}.png").write_bytes(image_files.image_bytes("png", which + 90, width=24, height=16))
            index.append({"id": str(4 * number + which), "picture": f"{which}.png", "text": None, "failure": None})
        (place / "batch.json").write_text(dump_json(index))
    return tmp_path


def test_reading_a_benchmark_holds_the_images_of_one_item() -> None:
    Counted.most = Counted.now
    before = Counted.now
    with image_store() as store:
        items = QuestionSet().items(Asked(12, Counted), store)
        assert Counted.most - before <= 4, "an item being kept, and the next one being made"
        assert all(isinstance(data, StoredBytes) for item in items for data in (*item.references, item.answer))
        assert items == Asked(12).items(), "the same bytes"
        assert digest_of_items(items) == digest_of_items(Asked(12).items())
        request = request_of(items[3])
        assert request.images == [*Asked(12).items()[3].references]


def test_scores_and_thumbnails_hold_a_batch_of_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = StoredBytes.read
    with image_store() as store:
        items = QuestionSet().items(Asked(8), store)
        made = list(results(folder, items, 4))
        whole = [Result(item, image=bytes_of(result.image or b"")) for item, result in zip(items, made, strict=True)]
        assert digest(made) == digest(whole)
        monkeypatch.setattr(StoredBytes, "read", lambda self: Counted(read(self)))
        Counted.most = before = Counted.now
        score_metric(Psnr("cpu"), made, folder, digest(made), batch=2)
        assert 1 <= Counted.most - before <= 4
        thumbnails([image for result in made for image in (result.image, result.item.answer) if image], 10**6)
        assert Counted.most - before <= 8, "a thread each"


@pytest.mark.slow
def test_images_of_a_corpus_are_read_from_its_shards_and_those_of_a_table_from_a_copy(tmp_path: Path) -> None:
    corpus = eval_runs.save_world(tmp_path / "corpus", 6)
    for spec, inside in ((f"world:{corpus}", True), (f"sigma:{corpus}", True)):
        with image_store() as store:
            benchmark, items = QuestionSet(limit=4).open(spec, store)
            plain = QuestionSet(limit=4).open(spec)[1]
            assert items == plain and benchmark.name == spec.split(":")[0]
            places = {
                Path(data.path).parent for item in items for data in item.references if not isinstance(data, bytes)
            }
            assert all(corpus in place.parents for place in places) == inside
    assert open_benchmark(f"sigma:{corpus}").places == {}


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 14))
@settings(deadline=None)
def test_a_limit_over_a_stream_takes_what_it_takes_of_a_list(families: list[str], limit: int) -> None:
    items = [Item(str(number), family, "") for number, family in enumerate(families)]
    turns = sorted((families[:number].count(family), number) for number, family in enumerate(families))[:limit]
    assert limited(items, limit) == [items[number] for number in sorted(number for _, number in turns)]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    place = stored.stored_file(tmp_path / "a.png")
    assert bytes_of(place) == b"one" and place == b"one" and place != b"two"
    assert place == replace(place, path="elsewhere") and hash(place) == hash(replace(place, offset=3))
    (tmp_path / "a.png").write_bytes(b"two")
    with pytest.raises(ConfigError, match="has changed"):
        place.read()
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        place.read()
