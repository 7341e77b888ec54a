"""The loader: one stream of packs to the bit, however many ranks and workers; resumed anywhere; faults named."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.corpora import build
from support.places import ROOT
from support.sequences import one_thread  # noqa: F401
from support.training_data import changed, dataset_of, index_of, interleaved, planned, print_of, tiny
from torch.utils.data import DataLoader

from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import ConfigError, CorpusError, LoaderError
from sigma_data.loading.decode_sample import decode_content
from sigma_data.loading.loader import START, Loader, LoaderSettings, PackDataset, Position, check_state
from sigma_data.loading.shard_cache import ShardCache
from sigma_data.loading.shard_reader import ShardReader
from sigma_data.loading.skip_log import SkipLog, SkippedSample
from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.plan import PackEntry, PackRequest, Planner
from sigma_data.sequence.layout import Kind, layout

ALONE = LoaderSettings(workers=0)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loader") / "corpus"
    build(out, "world:48?size=64")
    index_of(out)
    return out


@pytest.fixture
def corpus(built: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def planner(built: Path) -> Planner:
    return planned(index_of(built))


def loader(planner: Planner, workers: int = 0, *, rank: int = 0, world: int = 1, **options: Any) -> Loader:
    fields = {name: options.pop(name) for name in list(options) if name in LoaderSettings.model_fields}
    settings = LoaderSettings(workers=workers, **fields)
    return Loader(planner, dataset_of(planner), rank=rank, world=world, settings=settings, **options)


@pytest.fixture(scope="module")
def stream(planner: Planner) -> list[str]:
    """Three epochs as one rank reads them in its own process."""
    return [print_of(loaded) for loaded in loader(planner, epochs=3)]


def ranks(planner: Planner, count: int, world: int, **options: Any) -> list[str]:
    """The first `count` packs of each rank, merged in the global order."""
    return interleaved(
        [
            [print_of(loaded) for loaded in islice(loader(planner, rank=rank, world=world, **options), count)]
            for rank in range(world)
        ]
    )


# One stream -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_epoch_s_packs_are_the_plan_s_in_order_and_hold_all_its_samples(built: Path, planner: Planner) -> None:
    packs = list(loader(planner, epochs=2))
    expected = [(epoch, pack) for epoch in (0, 1) for pack in range(len(planner.plan(epoch)))]
    assert [(loaded.epoch, loaded.pack) for loaded in packs] == expected
    ids = {row["id"] for row in open_corpus(built).manifest.iter_rows(named=True) if row["split"] == "train"}
    for epoch in (0, 1):
        names = [name for loaded in packs if loaded.epoch == epoch for name in loaded.batch.names]
        assert len(names) == len(ids) and set(names) == ids
    fills = [*planner.plan(0).fills.tolist(), *planner.plan(1).fills.tolist()]
    assert [loaded.batch.tokens for loaded in packs] == fills


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ranks_together_read_the_same_stream(world: int, planner: Planner, stream: list[str]) -> None:
    count = len(stream) // world
    assert ranks(planner, count, world) == stream[: count * world]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "world", "options"),
    [
        (1, 1, {"start_method": "fork", "prefetch": 1}),
        (3, 1, {"start_method": "fork"}),
        (3, 3, {"start_method": "fork", "prefetch": 4}),
        (1, 2, {"start_method": "spawn"}),
        (3, 1, {"start_method": "spawn"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_workers_read_the_same_stream(
    workers: int, world: int, options: dict[str, Any], planner: Planner, stream: list[str]
) -> None:
    count = 8 // world + 3
    assert ranks(planner, count, world, workers=workers, **options) == stream[: count * world]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_torch_s_own_data_loader_reads_the_same_stream(method: str, planner: Planner, stream: list[str]) -> None:
    plan = planner.plan(0)
    tickets = [plan.ticket(pack) for pack in range(4)]
    packs = DataLoader(
        dataset_of(planner), batch_size=None, sampler=tickets, num_workers=2, multiprocessing_context=method
    )
    assert [print_of(loaded) for loaded in packs] == stream[:4]


def test_validation_ends_with_its_epochs_and_shares_out_every_pack(planner: Planner, stream: list[str]) -> None:
    length = sum(text.startswith("0/") for text in stream)
    shares = [[print_of(loaded) for loaded in loader(planner, rank=rank, world=4, epochs=1)] for rank in range(4)]
    assert interleaved(shares) == stream[:length]
    assert sorted(map(len, shares)) == sorted(len(stream[rank:length:4]) for rank in range(4))


@pytest.mark.slow
def test_several_corpora_are_read_side_by_side(built: Path, tmp_path: Path) -> None:
    build(tmp_path / "other", "world:12?size=64&seed=5")
    both = planned(index_of(built), index_of(tmp_path / "other"), shuffle=False)
    names = [name for loaded in loader(both, epochs=1) for name in loaded.batch.names]
    for corpus in (built, tmp_path / "other"):
        manifest = open_corpus(corpus).manifest
        assert set(manifest.filter(manifest["split"] == "train")["id"]) <= set(names)


# Resuming -------------------------------------------------------------------------------------------


def resumed(planner: Planner, worlds: Sequence[int], stops: Sequence[int], **options: Any) -> list[str]:
    """Run with each world in turn for so many packs a rank, saving and reading the state in between."""
    prints: list[str] = []
    position = START
    for world, count in zip(worlds, stops, strict=True):
        loaders = [loader(planner, rank=rank, world=world, position=position, **options) for rank in range(world)]
        streams = []
        for one in loaders:
            packs = iter(one)
            streams.append([print_of(loaded) for loaded in islice(packs, count)])
            packs.close()
        prints += interleaved(streams) if count else []
        states = {json.dumps(one.state()) for one in loaders}
        assert len(states) == 1  # any rank may save it
        position = check_state(json.loads(states.pop()), planner)
    return prints


@pytest.mark.parametrize("seed", range(10))
def test_a_run_stopped_and_resumed_anywhere_with_other_ranks_is_the_same_run(
    seed: int, planner: Planner, stream: list[str]
) -> None:
    draw = random.Random(seed)
    worlds = [draw.choice([1, 2, 3, 4, 8]) for _ in range(3)]
    stops = [draw.randrange(0, len(stream) // (3 * world) + 1) for world in worlds]
    found = resumed(planner, worlds, stops)
    assert found == stream[: sum(world * stop for world, stop in zip(worlds, stops, strict=True))]


def test_a_run_resumes_at_an_epoch_s_end_and_twice_in_a_row(planner: Planner, stream: list[str]) -> None:
    length = len(planner.plan(0))
    found = resumed(planner, [1, 2, 1, 1], [length, 0, 0, 5])
    assert found == stream[: length + 5]
    assert stream[length].startswith("1/0 ")


@pytest.mark.slow
def test_a_run_resumes_with_other_workers(planner: Planner, stream: list[str]) -> None:
    first = resumed(planner, [2], [3], workers=1)
    one = loader(planner, workers=2, position=Position(0, 6))
    assert first + [print_of(loaded) for loaded in islice(one, 4)] == stream[:10]


def test_a_loader_that_was_left_goes_on_where_it_was(planner: Planner, stream: list[str]) -> None:
    one = loader(planner, workers=2)
    found = [print_of(loaded) for _ in range(3) for loaded in islice(one, 2)]
    assert found == stream[:6]


def test_resuming_at_nine_tenths_reads_nothing_of_what_came_before(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    sample = ShardReader.sample

    def counted(self: ShardReader, row: int) -> Any:
        read.append(row)
        return sample(self, row)

    monkeypatch.setattr(ShardReader, "sample", counted)
    pack = len(planner.plan(0)) * 9 // 10
    next(iter(loader(planner, position=Position(0, pack))))
    assert read == [entry.row for entry in planner.plan(0).ticket(pack).entries]


def test_an_epoch_is_planned_once_though_workers_run_ahead_of_its_end(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = planned(index_of(built))
    made = []
    lengths = Planner.lengths
    monkeypatch.setattr(Planner, "lengths", lambda self, draws: made.append(1) or lengths(self, draws))  # type: ignore[func-returns-value]
    list(loader(one, workers=1, prefetch=8, rank=1, world=3, epochs=3))
    assert len(made) == 3


def test_a_state_of_another_plan_is_refused_with_every_field_that_changed(built: Path, planner: Planner) -> None:
    state = json.loads(json.dumps(loader(planner).state()))
    other = planned(index_of(built), budget=800, dropout={"text": 0.2}, seed=3)
    with pytest.raises(ConfigError) as error:
        check_state(state, other)
    text = str(error.value)
    assert "budget was 700 and is 800" in text and "seed was 0 and is 3" in text and "dropout was" in text
    assert "window" not in text and "tokenizer" not in text
    assert text.endswith("resume with the settings and the corpora it was started with, or start a new run")
    assert check_state(state, planned(index_of(built))) == START


@pytest.mark.parametrize("state", [{}, {"plan": 3, "epoch": 0, "next_pack": 0}, {"plan": {"digest": "x"}}])
def test_what_is_no_state_is_refused(state: dict[str, Any], planner: Planner) -> None:
    with pytest.raises(ConfigError, match="holds no position in the data"):
        check_state(state, planner)


# Content --------------------------------------------------------------------------------------------


def test_a_pack_holds_what_the_layouts_show_and_noise_by_sample_and_round_alone(built: Path, planner: Planner) -> None:
    encoder, shape, sizes = tiny()
    index = planner.indexes[0]
    rows = {row["id"]: row for row in open_corpus(built).manifest.iter_rows(named=True)}
    corpus = open_corpus(built)
    for pack, loaded in enumerate(islice(loader(planner), 4)):
        batch = loaded.batch
        pictures, patches, noise, u = [], [], [], []
        for entry in planner.plan(0).ticket(pack).entries:
            name = index.ids[entry.row].decode()
            sample = corpus.sample(rows[name])
            upright = {image["number"]: (image["width"], image["height"]) for image in rows[name]["images"]}
            dropped = planner.recipe.dropped(index, entry.row, entry.round, shape)
            segments = layout(sample.turns, upright, encoder, shape, dropped=dropped)
            content = decode_content(segments, {image.number: image.data for image in sample.images}, patch=14)
            seen = [segment.image for segment in segments if segment.kind.latent]
            pictures += [content.images[number] for number in dict.fromkeys(seen)]
            patches += [content.patches[segment.image] for segment in segments if segment.kind is Kind.PATCH]
            for segment in segments:
                if segment.kind is Kind.TARGET:
                    key = planner.recipe.noise_key(index, entry.row, entry.round, segment.image)
                    draw = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
                    u.append(np.float32(draw.standard_normal()))
                    noise.append(draw.standard_normal((segment.length - 2, sizes.latent), dtype=np.float32))
        assert all(np.array_equal(a, b) for a, b in zip(batch.images, pictures, strict=True))
        assert np.array_equal(batch.patches, np.concatenate(patches))
        assert np.array_equal(batch.u, u) and np.array_equal(batch.noise, np.concatenate(noise))
        assert {tensor.dtype for tensor in (*batch.images, batch.patches)} == {torch.uint8}
        assert loaded.images > 0 and loaded.bytes_read > 0 and loaded.seconds > 0 and loaded.skips == ()


def test_a_picture_that_dropout_leaves_out_is_not_read(built: Path) -> None:
    index = index_of(built)
    all_dropped = planned(index, dropout={"text": 1, "latent": 1, "patch": 1})
    for pack, loaded in enumerate(loader(all_dropped, epochs=1)):
        rows = [entry.row for entry in all_dropped.plan(0).ticket(pack).entries]
        targets = [int(index.image_first[row + 1]) - 1 for row in rows]  # references first, then the target
        assert loaded.bytes_read == sum(index.json_size[rows]) + sum(index.image_size[targets])
        assert loaded.images == len(rows)


def test_neither_the_world_s_random_state_is_used_nor_changed(planner: Planner) -> None:
    first = print_of(next(iter(loader(planner))))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert print_of(next(iter(loader(planner)))) == first
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_batch_crosses_between_processes_in_one_segment(planner: Planner) -> None:
    packs = iter(loader(planner, workers=1))
    kept = [next(packs)]
    before = len([*Path("/proc/self/fd").iterdir()])
    kept += islice(packs, 5)
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 5
    packs.close()


@pytest.mark.slow
def test_remote_shards_are_read_through_the_cache(built: Path, tmp_path: Path, stream: list[str]) -> None:
    remote = planned(index_of(built.as_uri(), cache=tmp_path / "indexes"))
    settings = LoaderSettings(workers=2, cache=tmp_path / "shards", cache_bytes=2**30)
    dataset = dataset_of(remote, cache=settings.shard_cache())
    packs = iter(Loader(remote, dataset, settings=settings))
    assert [print_of(loaded) for loaded in islice(packs, 6)] == stream[:6]
    packs.close()
    index = remote.indexes[0]
    read = {int(index.shard[entry.row]) for pack in range(6) for entry in remote.plan(0).ticket(pack).entries}
    kept = sorted(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert set(kept) >= {index.shard_bytes[number] for number in read}


# Bad pictures ---------------------------------------------------------------------------------------


def overwrite(index: CorpusIndex, row: int, number: int, change: Callable[[bytes], bytes]) -> None:
    """Change a picture's bytes in the shard, in place."""
    (place,) = [i for i in range(index.image_first[row], index.image_first[row + 1]) if index.image_number[i] == number]
    offset, size = int(index.image_offset[place]), int(index.image_size[place])
    with Path(index.uri, index.shards[index.shard[row]]).open("r+b") as file:
        file.seek(offset)
        data = change(file.read(size))
        assert len(data) == size
        file.seek(offset)
        file.write(data)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[: middle - 20] + bytes(255 - byte for byte in data[middle - 20 : middle + 20]) + data[middle + 20 :]


def headless(data: bytes) -> bytes:
    return bytes(16) + data[16:]


def everyone(index: CorpusIndex) -> Planner:
    """A plan that shows every picture, in the order of the corpus."""
    return planned(index, shuffle=False, dropout={"text": 0, "latent": 0, "patch": 0})


@pytest.mark.parametrize(("change", "code"), [(flipped, "undecodable|truncated"), (headless, "wrong_type")])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_costs_its_sample_alone_and_is_written_down(
    change: Callable[[bytes], bytes], code: str, workers: int, corpus: Path, tmp_path: Path
) -> None:
    index = index_of(corpus)
    one = everyone(index)
    ticket = one.plan(0).ticket(1)
    victim = ticket.entries[0].row
    number = int(index.image_number[index.image_first[victim + 1] - 1])
    overwrite(index, victim, number, change)
    log = SkipLog(tmp_path / "run" / "skips.jsonl", max_bad=0.01)
    packs = list(loader(one, workers=workers, epochs=1))
    for loaded in packs:
        log.add(loaded.samples, loaded.skips)
    name = index.ids[victim].decode()
    (line,) = [json.loads(text) for text in log.path.read_text().splitlines()]
    assert line.pop("code") in code.split("|") and line.pop("message")
    shard = index.shards[index.shard[victim]]
    assert line == {
        "epoch": 0, "pack": 1, "corpus": str(corpus), "sample": name, "shard": shard, "image": number,
    }  # fmt: skip
    seen = [name for loaded in packs for name in loaded.batch.names]
    planned_rows = [entry.row for pack in range(len(packs)) for entry in one.plan(0).ticket(pack).entries]
    assert seen == [index.ids[row].decode() for row in planned_rows if row != victim]
    assert log.samples == len(planned_rows) and log.skipped == 1


def test_a_pack_of_which_nothing_is_left_is_a_batch_of_no_tokens(corpus: Path) -> None:
    index = index_of(corpus)
    one = everyone(index)
    for entry in one.plan(0).ticket(0).entries:
        overwrite(index, entry.row, int(index.image_number[index.image_first[entry.row]]), headless)
    first, second = islice(loader(one, workers=1), 2)
    assert first.batch.tokens == 0 and first.batch.names == ()
    assert len(first.skips) == first.samples == len(one.plan(0).ticket(0).entries)
    assert second.batch.tokens == one.plan(0).fills[1]


def test_a_picture_of_another_size_than_the_manifest_says_is_skipped(built: Path) -> None:
    index = index_of(built)
    widths = np.asarray(index.image_width).copy()
    one = everyone(index)
    row = one.plan(0).ticket(0).entries[0].row
    place = int(index.image_first[row])
    widths[place] += 1  # too little to change the number of tokens
    one = everyone(changed(index, image_width=widths))
    (skip,) = next(iter(loader(one))).skips
    assert (skip.sample, skip.image, skip.code) == (index.ids[row].decode(), index.image_number[place], "other_size")
    assert f"{widths[place] - 1} x" in skip.message and f"{widths[place]} x" in skip.message


SKIP = SkippedSample(0, 0, "corpus", "sample", "train/editing-00000.tar", 1, "truncated", "the picture ends too early")


def test_too_many_bad_pictures_stop_the_run_with_the_share_the_reason_and_the_file(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "skips.jsonl", max_bad=0.05)
    log.add(9, (SKIP,) * 9)  # few are borne whatever their share
    log.add(191, ())
    log.add(1, (SKIP,))  # 10 of 201
    with pytest.raises(
        LoaderError, match="11 of 202 samples .*sample in train/editing-00000.tar .*ends too early"
    ) as error:
        log.add(1, (SKIP,))
    assert str(log.path) in str(error.value) and "max_bad above 0.05" in str(error.value)
    assert len(log.path.read_text().splitlines()) == 11


# Faults ---------------------------------------------------------------------------------------------


def no_more_processes() -> bool:
    """Whether every worker is gone and reaped."""
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not multiprocessing.active_children()


def segments() -> set[str]:
    """Files of this process and of /dev/shm in which batches could be left behind."""
    named = {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("torch_", "pym-", "psm_"))}
    return named | {link for link in map(_link, Path("/proc/self/fd").iterdir()) if "sigma-loader" in link}


def _link(path: Path) -> str:
    try:
        return f"{path.name} {path.readlink()}"
    except OSError:  # that of the listing itself is gone
        return ""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "says"),
    [(lambda shard: os.truncate(shard, 600), "bytes too early"), (Path.unlink, "is not there any more")],
    ids=["truncated", "vanished"],
)
def test_a_broken_shard_ends_training_with_one_sentence(
    damage: Callable[[Path], None], says: str, workers: int, corpus: Path
) -> None:
    index = index_of(corpus)
    one = everyone(index)
    row = one.plan(0).ticket(0).entries[0].row
    shard = corpus / index.shards[index.shard[row]]
    damage(shard)
    with pytest.raises(CorpusError) as error:
        next(iter(loader(one, workers=workers)))
    assert f"{shard}: sample " in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    assert no_more_processes()


def test_a_corpus_that_is_not_the_planned_one_is_refused(planner: Planner) -> None:
    entry = planner.plan(0).ticket(0).entries[0]
    other = replace(entry, length=entry.length + 1)
    with pytest.raises(CorpusError, match=r"was planned with [0-9,]+ tokens and has [0-9,]+: the corpus changed"):
        dataset_of(planner)[PackRequest(0, 0, (other,))]


class Stuck(PackDataset):
    """Never comes back from the sample numbered `row`."""

    row = -1

    def read_sample(self, entry: PackEntry) -> Any:
        if entry.row == self.row:
            time.sleep(120)
        return super().read_sample(entry)


def stuck(planner: Planner) -> tuple[Stuck, str]:
    """A data set that is stuck in the third pack, and what it is then reading."""
    dataset = Stuck(planner.indexes, planner.recipe, *tiny())
    dataset.row = planner.plan(0).ticket(2).entries[-1].row
    index = planner.indexes[0]
    return dataset, f"sample {index.ids[dataset.row].decode()} in {index.uri}/{index.shards[index.shard[dataset.row]]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "by", "cause"),
    [
        ("fork", signal.SIGKILL, "killed, most likely because memory ran out: use fewer workers"),
        ("spawn", signal.SIGKILL, "killed, most likely because memory ran out: use fewer workers"),
        ("fork", signal.SIGUSR1, "exit code -10"),
    ],
)
def test_a_killed_worker_is_an_error_that_names_the_sample_and_leaves_nothing(
    method: str, by: signal.Signals, cause: str, planner: Planner
) -> None:
    before = segments()
    dataset, reading = stuck(planner)
    packs = iter(Loader(planner, dataset, settings=LoaderSettings(workers=1, start_method=method)))
    assert [next(packs).pack, next(packs).pack] == [0, 1]
    (worker,) = multiprocessing.active_children()
    time.sleep(0.3)
    os.kill(worker.pid, by)
    begin = time.monotonic()
    with pytest.raises(LoaderError) as error:
        next(packs)
    assert time.monotonic() - begin < 5
    assert str(error.value).startswith(f"a loader worker died while reading {reading} ({cause}")
    assert no_more_processes()
    del error, packs  # whose frames have the last batch
    gc.collect()
    assert segments() == before


@pytest.mark.slow
def test_a_worker_that_hangs_is_an_error_that_names_the_sample(planner: Planner) -> None:
    dataset, reading = stuck(planner)
    packs = iter(Loader(planner, dataset, settings=LoaderSettings(workers=1, timeout=1.5)))
    assert len(list(islice(packs, 2))) == 2
    with pytest.raises(LoaderError, match=f"not answered for 1.5 seconds, while reading {reading}: .*longer timeout"):
        next(packs)
    assert no_more_processes()


class Broken(PackDataset):
    fault: Exception = ZeroDivisionError("a fault of our own")

    def read_sample(self, entry: PackEntry) -> Any:
        raise self.fault


def test_a_fault_of_the_program_arrives_as_it_is_with_the_worker_s_traceback(planner: Planner) -> None:
    broken = Broken(planner.indexes, planner.recipe, *tiny())
    with pytest.raises(ZeroDivisionError) as error:
        next(iter(Loader(planner, broken, settings=LoaderSettings(workers=1))))
    assert str(error.value) == "a fault of our own"
    assert any("in read_sample" in note for note in error.value.__notes__)


def test_leaving_an_iterator_ends_its_workers(planner: Planner) -> None:
    before = segments()
    packs = iter(loader(planner, workers=3, prefetch=3))
    kept = next(packs)
    assert len(multiprocessing.active_children()) == 3
    was = kept.batch.positions.clone()
    packs.close()
    assert not multiprocessing.active_children()
    assert torch.equal(kept.batch.positions, was)  # still there
    del kept
    assert segments() == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_do_not_outlive_a_killed_training(method: str, built: Path, tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(
        textwrap.dedent(f"""
            import multiprocessing, time
            from support.training_data import dataset_of, index_of, planned
            from sigma_data.loading.loader import Loader, LoaderSettings

            if __name__ == "__main__":
                planner = planned(index_of({str(built)!r}))
                settings = LoaderSettings(workers=2, start_method={method!r})
                packs = iter(Loader(planner, dataset_of(planner), settings=settings))
                next(packs)
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                time.sleep(60)
        """)
    )
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        workers = [int(pid) for pid in training.stdout.readline().split()]
        training.kill()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in workers if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and left == []


def running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"worker": 2},
        {"workers": -1},
        {"prefetch": 0},
        {"start_method": "forkserver"},
        {"max_bad": 2},
        {"latent_cache": -1},
    ],
)
def test_settings_refuse_what_makes_no_sense(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoaderSettings(**field)


def test_settings_describe_the_cache(tmp_path: Path) -> None:
    assert LoaderSettings().shard_cache() is None
    assert LoaderSettings(cache=tmp_path, cache_bytes=5).shard_cache() == ShardCache(tmp_path, 5)


def test_a_data_set_travels_to_a_worker_as_little_more_than_its_name(planner: Planner, stream: list[str]) -> None:
    dataset = dataset_of(planner)
    again = pickle.loads(data := pickle.dumps(dataset))
    assert len(data) < len(pickle.dumps(tiny()[0])) + 10_000
    assert print_of(again[planner.plan(0).ticket(3)]) == stream[3]
