"""Corpora without pictures, for planning: a manifest, a commit, and no shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.corpus import CARD, MANIFEST, QUARANTINE, REPORT, file_digest
from sigma_data.corpus.record import SCHEMA_VERSION, stored_order
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, VQA_RULE
from sigma_data.instruction import Text
from sigma_data.planning.index import CorpusIndex, open_index
from sigma_data.planning.plan import Planner, PlanSettings
from sigma_data.sample import Family
from sigma_data.sequence.layout import Geometry, Kind
from support import corpora
from support.sequences import Case, WordEncoder, case

BAGEL = Geometry(VAE_RULE, VIT_RULE, VQA_RULE, latent_grid=64, patch_grid=70, max_tokens=32_768)


class Counter(WordEncoder):
    """The tokenizer of whole words, as an index asks for it."""

    digest = "words"

    def count_many(self, texts: Iterable[str]) -> list[int]:
        return [len(self.encode_parts([Text(text)]).ids) for text in texts]


def row_of(one: Case, number: int, *, per_shard: int = 1000) -> dict[str, Any]:
    """A row of a manifest; the sample's pictures lie somewhere in its shard."""
    sample = one.sample
    images = [
        {
            "number": image, "role": "target" if image in sample.targets else "reference", "member": f"{image}.jpg",
            "format": "JPEG", "mode": "RGB", "width": one.sizes[image][0], "height": one.sizes[image][1],
            "size": 100, "offset": 1000 + image, "sha256": "0" * 64, "signature": bytes(8), "reencoded": None,
        }
        for image in stored_order(sample)
    ]  # fmt: skip
    turns = [{"instruction": t.instruction, "target": t.target, "response": t.response} for t in sample.turns]
    return {
        "id": hashlib.sha256(str(number).encode()).hexdigest()[:20], "family": sample.family.value,
        "family_inferred": False, "split": "train", "shard": f"train/{sample.family}-{number // per_shard:05d}.tar",
        "index": number % per_shard, "offset": 0, "size": 0, "json_offset": 512, "json_size": 300,
        "json_sha256": "0" * 64, "images": images, "instruction": sample.turns[0].instruction, "turns": turns,
        "attributes": [], "references": len(sample.references), "tokens": 1, "content": "0", "component": "0",
        "source": "test", "location": "here", "row": number, "license": "unknown", "warnings": [],
    }  # fmt: skip


def write_corpus(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A committed corpus of these rows of a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    corpora.write_manifest(folder, [dict(row) for row in rows])
    corpora.write_quarantine(folder, [])
    for name in (CARD, REPORT):
        (folder / name).write_text("x")
    shards = sorted({row["shard"] for row in rows})
    counted = {"read": len(rows), "written": len(rows), "quarantined": 0, "duplicates": 0, "images": 0, "bytes": 0}
    files = {name: file_digest(folder / name) for name in (MANIFEST, QUARANTINE, CARD, REPORT)}
    commit = {
        "schema_version": SCHEMA_VERSION,
        "config": {"title": "x", "splits": {"train": 1.0}, "limits": Limits().model_dump(mode="json"), "checks": {}},
        "config_digest": "x", "inputs": "x",
        "sums": {**counted, "codes": {}, "splits": {"train": len(rows)}, "families": {}, "components": 0},
        "shards": {name: {"samples": 1, "bytes": 5000, "sha256": "0" * 64} for name in shards},
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()},
    }  # fmt: skip
    corpora.write_commit(folder, commit)
    return folder


def index_of(folder: Path, cases: Sequence[Case]) -> CorpusIndex:
    """The index of a corpus of these samples."""
    return open_index(str(write_corpus(folder, [row_of(one, i) for i, one in enumerate(cases)])), Counter())


def families(counts: Mapping[Family, int], *, seed: int = 0) -> list[Case]:
    """Samples of families, in their order, with pictures of many sizes; understanding is answered in words."""
    random = np.random.default_rng(seed)
    made = []
    for family, count in counts.items():
        for _ in range(count):
            pictures = int(random.integers(2, 5))
            sizes = {number: tuple(random.integers(200, 1600, 2).tolist()) for number in range(1, pictures + 1)}
            words = " ".join(["make"] * int(random.integers(1, 40)))
            turn: Any = f"{words} <image_1> <style> it"
            if family is Family.UNDERSTANDING:
                turn = case("what", pictures=1).sample.turns[0]
                turn = replace(turn, instruction=f"what is {words}", target=None, response=words)
            one = case(turn, pictures=pictures, sizes=sizes)
            made.append(replace(one, sample=replace(one.sample, family=family)))
    return made


def mixed_corpus(folder: Path, *, seed: int = 0, scale: int = 1, per_shard: int = 10) -> Path:
    """A corpus of three families: 60, 25 and 40 samples, times `scale`."""
    counts = {Family.COMPOSITIONAL: 60 * scale, Family.EDITING: 25 * scale, Family.UNDERSTANDING: 40 * scale}
    cases = families(counts, seed=seed)
    return write_corpus(folder, [row_of(one, 10_000 * seed + i, per_shard=per_shard) for i, one in enumerate(cases)])


def planner_of(*folders: Path, geometry: Geometry = BAGEL, **settings: Any) -> Planner:
    """The planner of corpora, each with its default settings."""
    values = {"corpora": [{"path": str(folder)} for folder in folders], **settings}
    indexes = [open_index(str(folder), Counter()) for folder in folders]
    return Planner(PlanSettings.model_validate(values), indexes, geometry, tokenizer=Counter.digest)


def packs_digest(planner: Planner, *epochs: int) -> str:
    """SHA-256 over the tickets of epochs."""
    digest = hashlib.sha256()
    for epoch in epochs:
        plan = planner.plan(epoch)
        for number in range(len(plan)):
            for entry in plan.ticket(number).entries:
                sample = planner.indexes[entry.corpus].ids[entry.row].decode()
                digest.update(f"{epoch} {number} {entry.corpus} {sample} {entry.round} {entry.length}\n".encode())
    return digest.hexdigest()


def dropped_by_kind(planner: Planner, epoch: int) -> dict[Kind, float]:
    """The share of segments of each kind that an epoch leaves out, of samples that are not answered in words alone."""
    draws = planner.plan(epoch).draws
    seen = np.zeros((2, len(Kind)))
    for row, number in zip(draws.row.tolist(), draws.round.tolist(), strict=True):
        index = planner.indexes[0]
        if index.words_only[row]:
            continue
        kinds = [
            kind
            for piece in index.piece_kind[index.piece_first[row] : index.piece_first[row + 1]].tolist()
            for kind in (planner.geometry.kinds(text_only=False) if piece == Kind.LATENT else (piece,))
        ]
        dropped = planner.recipe.dropped(index, row, number, planner.geometry)
        for place, kind in enumerate(kinds):
            seen[int(place in dropped), kind] += 1
    total = seen.sum(axis=0)
    return {kind: float(seen[1, kind] / total[kind]) for kind in Kind if total[kind]}
