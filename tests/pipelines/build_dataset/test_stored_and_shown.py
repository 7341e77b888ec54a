"""What a corpus stores of images that readers show differently, and what each reader makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from support import corpora, image_files

from pipelines.inspect.run import inspect_sample
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import MANIFEST, Corpus, open_corpus
from sigma_data.corpus.dataset_card_usage import READ_IMAGE
from sigma_data.images.decode import load
from sigma_data.images.resample import resized

RAMP = np.tile(np.linspace(0, 1, 120, dtype=np.float32), (80, 1))
COLOURS = image_files.smooth(5, 120, 80)


def with_alpha(mode: str) -> Image.Image:
    image = COLOURS.convert(mode[:-1])
    image.putalpha(Image.fromarray((RAMP * 255).astype(np.uint8)))
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


KINDS: dict[str, bytes] = {
    "16-bit PNG of millimetres": image_files.encoded(Image.fromarray((RAMP * 4000).astype(np.uint16)), "png"),
    "16-bit PNG, full range": image_files.encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "png"),
    "float TIFF of millimetres": image_files.encoded(Image.fromarray(RAMP * 9000), "tiff"),
    "float TIFF, 0..1": image_files.encoded(Image.fromarray(RAMP), "tiff"),
    "turned JPEG": image_files.encoded(COLOURS, "jpeg", exif=turned(6)),
    "mirrored PNG": image_files.encoded(COLOURS, "png", exif=turned(5)),
    "RGBA PNG": image_files.encoded(with_alpha("RGBA"), "png"),
    "LA PNG": image_files.encoded(with_alpha("LA"), "png"),
    "palette PNG": image_files.encoded(COLOURS.quantize(16), "png", transparency=3),
    "lossless WebP with alpha": image_files.encoded(with_alpha("RGBA"), "webp", lossless=True),
    "plain JPEG": image_files.image_bytes("jpeg", 8),
    "CMYK JPEG": image_files.image_bytes("jpeg", 9, mode="CMYK"),
}
DEEP = {name for name in KINDS if "16-bit" in name or "float" in name}
TURNED = {"turned JPEG", "mirrored PNG"}
TRANSPARENT = {"RGBA PNG", "LA PNG", "palette PNG", "lossless WebP with alpha"}
CODES = {
    **dict.fromkeys(DEEP, "deep_image"), **dict.fromkeys(TURNED, "turned_image"),
    **dict.fromkeys(TRANSPARENT, "transparent_image"),
}  # fmt: skip

# Which kinds each reader shows as we do, of a corpus that stores what came. HF turns images upright; nobody else does
# anything but convert to RGB.
AS_WE_DO = {"webdataset": set(KINDS) - set(CODES), "datasets": set(KINDS) - DEEP - TRANSPARENT}
AS_WE_DO["energon"] = AS_WE_DO["webdataset"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    rows = [
        {
            "image_list": [data, image_files.image_bytes("jpeg", 100 + number)],
            "instruction_list": [[f"Follow <image_1>, kind {name}"]],
            "data_prep_method": "editing",
        }
        for number, (name, data) in enumerate(KINDS.items())
    ]
    corpora.write_parquet(folder / "seedxedit_multi" / "chunk_0.parquet", rows)
    return folder


@pytest.fixture(scope="module", params=["original", "auto", "shown"])
def corpus(request: pytest.FixtureRequest, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp(request.param) / "corpus"
    return corpora.build(out, f"release:{release}", splits={"train": 1}, store=request.param).corpus


def store(corpus: Corpus) -> str:
    return str(corpus.commit["config"]["store"])


def rows(corpus: Corpus) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], bytes]]:
    """(kind, row of the manifest, its first image, bytes of that)."""
    for row in corpus.manifest.iter_rows(named=True):
        image = row["images"][0]
        yield (
            row["instruction"].partition("kind ")[2],
            row,
            image,
            corpus.read(row["shard"], image["offset"], image["size"]),
        )


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


# Ours -----------------------------------------------------------------------------------------------


def test_bytes_pass_untouched_unless_the_store_says_otherwise_and_the_manifest_records_it(corpus: Corpus) -> None:
    stored_as_shown = {"original": set(), "auto": DEEP, "shown": set(CODES)}[store(corpus)]
    found = {}
    for kind, row, image, data in rows(corpus):
        found[kind] = image
        assert (data == KINDS[kind]) == (kind not in stored_as_shown)
        assert image["reencoded"] == (CODES[kind] if kind in stored_as_shown else None)
        assert row["warnings"] == ([] if kind in stored_as_shown or kind not in CODES else [CODES[kind]])
        if kind in stored_as_shown:
            assert (image["format"], image["mode"]) == ("PNG", "RGB")
            assert Image.open(io.BytesIO(data)).getexif().get(0x0112) is None
    assert found.keys() == KINDS.keys()
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_training_inspection_and_metrics_show_the_same_whatever_is_stored(corpus: Corpus) -> None:
    for kind, row, image, data in rows(corpus):
        assert np.array_equal(pixels(load(data)), pixels(load(KINDS[kind])))
        assert load(data).size == (image["width"], image["height"])
        difference = resized(data, (56, 28)).astype(int) - resized(KINDS[kind], (56, 28))
        assert np.abs(difference).max() <= (kind in TURNED), "an image is turned after it is resized: rounding differs"
        assert inspect_sample(corpus.path, row["id"]).as_dict()["images"][0]["value_range"] == image["value_range"]


def test_the_range_of_a_deep_image_stands_in_manifest_record_and_inspection(corpus: Corpus) -> None:
    ranges = {
        "16-bit PNG of millimetres": {"rule": "min_max", "low": 0.0, "high": 4000.0},
        "16-bit PNG, full range": {"rule": "full_16bit", "low": 0.0, "high": 65535.0},
        "float TIFF of millimetres": {"rule": "min_max", "low": 0.0, "high": 9000.0},
        "float TIFF, 0..1": {"rule": "unit", "low": 0.0, "high": 1.0},
    }
    for kind, row, image, _ in rows(corpus):
        record = json.loads(corpus.read(row["shard"], row["json_offset"], row["json_size"]))
        assert image["value_range"] == ranges.get(kind)
        assert record["images"][0].get("value_range") == ranges.get(kind)
        assert ("value_range" in record["images"][0]) == (kind in ranges)
    sample = corpus.sample(next(row for kind, row, *_ in rows(corpus) if kind == "16-bit PNG of millimetres"))
    assert str(sample.images[0].value_range) == "0..4000 (min_max)"


def test_ranges_survive_building_again_from_the_shards(corpus: Corpus, tmp_path: Path) -> None:
    again = corpora.build(tmp_path / "again", f"webdataset:{corpus.path}", splits={"train": 1}).corpus
    before = {kind: image["value_range"] for kind, _, image, _ in rows(corpus)}
    assert {kind: image["value_range"] for kind, _, image, _ in rows(again)} == before
    assert not validate_corpus(again.path, deep=True, workers=0).problems


def test_a_forged_range_is_found(release: Path, tmp_path: Path) -> None:
    corpus = corpora.build(tmp_path / "out", f"release:{release}", store="original").corpus
    manifest = corpora.read_manifest(corpus.path)
    deep = next(row for row in manifest if row["images"][0]["value_range"])
    deep["images"][0]["value_range"]["high"] = 5.0
    corpora.write_manifest(corpus.path, manifest)
    corpora.forge_commit(corpus.path)
    problems = validate_corpus(corpus.path, deep=True, workers=0).problems
    assert [problem.code for problem in problems] == ["manifest_differs"]
    assert "value_range" in problems[0].message


def test_a_corpus_from_before_there_were_ranges_opens_validates_and_trains(release: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sigma_data.corpus.manifest import images_type, manifest_schema
    from sigma_data.planning.index import open_index
    from sigma_data.sequence.tokenizer import Tokenizer
    from sigma_model.config import preset_directory

    corpora.make_release(tmp_path / "plain", 6)
    path = corpora.build(tmp_path / "out", f"release:{tmp_path / 'plain'}", splits={"train": 1}).corpus.path
    table = pl.read_parquet(path / MANIFEST).to_arrow()
    older = [{**row, "images": [drop(image) for image in row["images"]]} for row in table.to_pylist()]
    fields = [pa.field("images", images_type(ranges=False)) if f.name == "images" else f for f in manifest_schema()]
    pq.write_table(pa.Table.from_pylist(older, schema=pa.schema(fields)), path / MANIFEST)
    corpora.forge_commit(path)
    corpus = open_corpus(path)
    assert {image["value_range"] for row in corpus.manifest.iter_rows(named=True) for image in row["images"]} == {None}
    assert not validate_corpus(path, deep=True, workers=0).problems
    assert len(open_index(str(path), Tokenizer.load(preset_directory("tiny")))) == len(corpus.manifest)


def drop(image: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in image.items() if name != "value_range"}


def test_images_without_a_range_go_to_quarantine(tmp_path: Path) -> None:
    row = corpora.release_row(3)
    row["image_list"][0] = image_files.encoded(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "tiff")
    corpora.write_parquet(tmp_path / "in" / "chunk_0.parquet", [row, corpora.release_row(4)])
    corpus = corpora.build(tmp_path / "out", f"release:{tmp_path / 'in'}").corpus
    assert corpus.quarantine["code"].to_list() == ["no_range"]
    assert "no finite value" in corpus.quarantine["message"][0]


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["auto", "shown"])
def test_the_same_inputs_give_the_same_bytes_for_any_number_of_workers(
    release: Path, tmp_path: Path, chosen: str
) -> None:
    made = [corpora.build(tmp_path / str(n), f"release:{release}", store=chosen, workers=n).corpus for n in (0, 2)]
    first, second = (corpora.files_below(corpus.path) for corpus in made)
    assert first == second


# Others ---------------------------------------------------------------------------------------------


def as_webdataset_reads(corpus: Corpus) -> dict[str, Image.Image]:
    import webdataset

    shards = [str(corpus.path / shard) for shard in corpus.shards]
    return {
        s["json"]["turns"][0]["instruction"].partition("kind ")[2]: s[s["json"]["images"][0]["member"]]
        for s in webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    }


def as_datasets_reads(corpus: Corpus) -> dict[str, Image.Image]:
    from datasets import load_dataset

    return {
        s["json"]["turns"][0]["instruction"].partition("kind ")[2]: s[s["json"]["images"][0]["member"]]
        for s in load_dataset(str(corpus.path), split="train", streaming=True)
    }


def as_energon_reads(corpus: Corpus) -> dict[str, Image.Image]:
    import webdataset

    try:
        from megatron.energon.flavors.webdataset.sample_decoder import SampleDecoder
    except ImportError:  # no dependency of ours: what SampleDecoder(image_decode="pilrgb") of 7.4 sets up
        decode = webdataset.autodecode.Decoder([webdataset.autodecode.imagehandler("pilrgb")])
    else:
        decode = SampleDecoder(image_decode="pilrgb")
    shards = [str(corpus.path / shard) for shard in corpus.shards]
    found = {}
    for raw in webdataset.WebDataset(shards, shardshuffle=False):
        s = decode(raw)
        found[s["json"]["turns"][0]["instruction"].partition("kind ")[2]] = s[s["json"]["images"][0]["member"]]
    return found


READERS: dict[str, Callable[[Corpus], dict[str, Image.Image]]] = {
    "webdataset": as_webdataset_reads, "datasets": as_datasets_reads, "energon": as_energon_reads,
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_what_each_reader_shows_is_stated(corpus: Corpus, reader: str) -> None:
    stored_as_shown = {"original": set(), "auto": DEEP, "shown": set(CODES)}[store(corpus)]
    found = READERS[reader](corpus)
    assert found.keys() == KINDS.keys()
    ours = {kind: pixels(load(data)) for kind, data in KINDS.items()}
    alike = {kind for kind in KINDS if np.array_equal(pixels(found[kind]), ours[kind])}
    assert alike == AS_WE_DO[reader] | stored_as_shown


def test_how_the_others_differ_where_the_original_is_stored(corpus: Corpus) -> None:
    if store(corpus) != "original":
        pytest.skip("only the original differs")
    found = as_webdataset_reads(corpus)
    assert np.mean(pixels(found["16-bit PNG of millimetres"]) == 255) > 0.9, "clipped to white"
    assert np.mean(pixels(found["float TIFF of millimetres"]) == 255) > 0.9
    assert found["turned JPEG"].size == (120, 80)
    assert as_datasets_reads(corpus)["turned JPEG"].size == (80, 120)
    assert pixels(found["lossless WebP with alpha"])[:, 0].max() == 0, "black where nothing shows"
    assert pixels(load(KINDS["lossless WebP with alpha"]))[:, 0].min() == 255


def test_the_snippet_of_the_card_reads_every_image_as_we_do(corpus: Corpus) -> None:
    scope: dict[str, Any] = {}
    exec(READ_IMAGE, scope)
    for kind, _, image, data in rows(corpus):
        assert np.array_equal(pixels(scope["read_image"](data, image["value_range"])), pixels(load(KINDS[kind]))), kind


# The card and the report ----------------------------------------------------------------------------


def python_blocks(card: str) -> list[str]:
    return [block.partition("```")[0] for block in card.split("```python\n")[1:]]


@pytest.mark.slow
def test_every_snippet_of_the_card_runs_on_its_corpus(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(corpus.path)
    card = (corpus.path / "README.md").read_text("utf-8")
    scope: dict[str, Any] = {}
    for block in python_blocks(card):
        exec(block.replace("PATH/TO/THIS/FOLDER", str(corpus.path)), scope)
    assert ("read_image" in scope) == (store(corpus) != "shown")
    assert len(list(scope["samples"])) == len(KINDS)
    assert len(scope["corpus"]) == len(KINDS)
    # Bytes as they lie in the shard, with decoding switched off as the card says.
    shards = {row["id"]: (image, data) for _, row, image, data in rows(corpus)}
    for sample in scope["corpus"]:
        image, data = shards[sample["__key__"]]
        assert sample[image["member"]]["bytes"] == data
    assert len(list(scope["again"])) == len(KINDS) - 1


def test_card_and_report_name_what_others_show_differently_and_what_was_stored_anew(corpus: Corpus) -> None:
    card = (corpus.path / "README.md").read_text("utf-8")
    report = (corpus.path / "report.html").read_text("utf-8")
    stored_as_shown = {"original": set(), "auto": DEEP, "shown": set(CODES)}[store(corpus)]
    for code in ("deep_image", "turned_image", "transparent_image"):
        kinds = {kind for kind in CODES if CODES[kind] == code}
        warned, anew = len(kinds - stored_as_shown), len(kinds & stored_as_shown)
        assert (f"| `{code}` | {warned} |" in card.partition("## Images stored as shown")[0]) == (warned > 0)
        assert (f"| `{code}` | {anew} |" in card.partition("## Images stored as shown")[2]) == (anew > 0)
        assert f"<code>{code}</code>" in report
    assert ("Stored anew" in report) == bool(stored_as_shown)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of JPEGs in several shards."""
    folder = tmp_path_factory.mktemp("photographs")
    corpora.make_release(folder / "release", 36, seed=6)
    spec = f"release:{folder / 'release'}"
    return corpora.build(folder / "corpus", spec, splits={"train": 1}, shard_samples=4).corpus.path


@pytest.mark.slow
def test_what_the_card_says_of_datasets_map_is_so(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = datasets.load_dataset(str(photographs), "relation", split="train")
    name = "ref_01.jpg"
    undecoded = loaded.cast_column(name, datasets.Image(decode=False))

    def stored(data: Any) -> list[bytes]:
        return [row[name]["bytes"] for row in data.cast_column(name, datasets.Image(decode=False)) if row[name]]

    def look(row: dict[str, Any]) -> dict[str, int]:
        return {"seen": 0 if row[name] is None else getattr(row[name], "width", 1)}

    before = stored(loaded)
    assert stored(loaded.map(lambda row: {"n": row["__key__"]})) == before
    assert stored(undecoded.map(look)) == before
    anew = stored(loaded.map(look))
    quality_75 = Image.open(io.BytesIO(image_files.image_bytes("jpeg", 1, quality=75))).quantization
    assert all(data != old for data, old in zip(anew, before, strict=True))
    assert all(Image.open(io.BytesIO(data)).quantization == quality_75 for data in anew)
    assert set(stored(loaded.filter(lambda row: bool(look(row)["seen"])))) == set(before)


@pytest.mark.slow
def test_what_the_card_says_of_resuming_a_datasets_stream_is_so(photographs: Path) -> None:
    from datasets import load_dataset

    def stream(buffer: int | None) -> Any:
        data = load_dataset(str(photographs), split="train", streaming=True).select_columns(["__key__"])
        return data if buffer is None else data.shuffle(seed=0, buffer_size=buffer)

    def keys(data: Any) -> list[str]:
        return [row["__key__"] for row in data]

    def resumed(buffer: int | None, *, epoch: int, told: int) -> tuple[list[str], list[str]]:
        """All keys of an epoch; and those up to an interruption with those after it."""
        data = stream(buffer)
        data.set_epoch(epoch)
        whole, each = keys(data), iter(data)
        first = [next(each)["__key__"] for _ in range(10)]
        again = stream(buffer)
        again.set_epoch(told)
        again.load_state_dict(data.state_dict())
        return whole, first + keys(again)

    for buffer in (None, 1):
        whole, both = resumed(buffer, epoch=1, told=1)
        assert both == whole
    whole, both = resumed(8, epoch=0, told=0)
    assert len(set(whole) - set(both)) > 0, "the buffer is lost"
    whole, both = resumed(1, epoch=1, told=0)
    assert both != whole
