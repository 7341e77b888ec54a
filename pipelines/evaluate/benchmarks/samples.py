"""From samples to items: one item a turn, its references numbered as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.evaluate.item import Item
from pipelines.evaluate.stored import StoredBytes
from sigma_data.corpus.corpus import COMMIT, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.instruction import Instruction, parse, renumber
from sigma_data.sample import Family, Rejection, Sample, Turn
from sigma_data.sources import open_source, source_spec
from sigma_data.storage.data_folder import RemoteFolder
from sigma_data.storage.paths import is_uri


def is_corpus(path: str) -> bool:
    """Whether a committed corpus lies at a path or URI. Raises SourceError where a store does not answer."""
    return RemoteFolder(path).exists(COMMIT) if is_uri(path) else (Path(path) / COMMIT).is_file()


def corpus_samples(path: str, split: str, places: dict[str, StoredBytes] | None = None) -> Iterator[Sample]:
    """The samples of a split of a corpus, in the order of its manifest; where their images lie enters `places`.

    Raises ConfigError where the corpus has no sample in the split, CorpusError where it cannot be read.
    """
    corpus = open_corpus(path)
    rows = corpus.manifest.filter(corpus.manifest["split"] == split)
    if rows.is_empty():
        there = ", ".join(name for name, count in corpus.sums["splits"].items() if count) or "none"
        raise ConfigError(f"{path}: has no sample in the split {split!r}; splits with samples: {there}")
    for row in rows.iter_rows(named=True):
        sample = corpus.sample(row)
        if places is not None and corpus.uri is None:
            shard = str(corpus.path / row["shard"])
            for one in row["images"]:
                places[one["sha256"]] = StoredBytes(shard, one["offset"], one["size"], one["sha256"])
        yield sample


def release_samples(path: str, *, asked_by: str, otherwise: str) -> Iterator[Sample]:
    """The samples of the release's parquet. Raises ConfigError where a row cannot be read: none may go unseen.

    `otherwise` says how another layout can be given.
    """
    reader = open_source(source_spec("release", path))
    for fragment in reader.fragments():
        for record in reader.read(fragment):
            if isinstance(record, Rejection):
                raise ConfigError(f"{asked_by}: {_where(record, path)}{record.message}; {_advice(record, otherwise)}")
            yield record


def _where(record: Rejection, path: str) -> str:
    """File and row, the file left out where it is the one that was named."""
    file = "" if record.location == Path(path).name else f"{record.location}: "
    return file if record.row is None else f"{file}row {record.row}: "


def _advice(record: Rejection, otherwise: str) -> str:
    if record.code == "wrong_columns":
        return f"parquet has the release's columns here (docs/corpus-format.md): {otherwise}"
    if record.row is None:
        return "download the file again"
    return "download the file again, or build a corpus of it with sigma build-dataset and use that"


def items_of(sample: Sample) -> Iterator[Item]:
    """The items of a sample whose answer is an image; a turn answered with text gives none.

    A later turn sees the references and then the true answers of earlier turns, which it comes after as in training.
    An image without bytes is b"" among the references. Raises ConfigError for a turn without any answer.
    """
    return (item for index, item in _items(sample) if sample.turns[index].target is not None)


def text_items_of(sample: Sample) -> Iterator[tuple[int, Item]]:
    """The items of a sample whose answer is text, each with its turn's index; otherwise as `items_of`."""
    return ((index, item) for index, item in _items(sample) if sample.turns[index].target is None)


def _items(sample: Sample) -> Iterator[tuple[int, Item]]:
    """An item a turn, with its index."""
    images = {image.number: image.data or b"" for image in sample.images}
    for index, turn in enumerate(sample.turns):
        if turn.target is None and turn.response is None:
            source = sample.source
            raise ConfigError(f"{source.location}, row {source.row}: has no answer, neither an image nor text")
        context = _context(sample, index)
        place = {number: position for position, number in enumerate(context, 1)}
        instruction = parse(turn.instruction)
        *before, last = (_renumbered(one, place) for one in sample.turns[: index + 1])
        item = Item(
            id=sample.id if len(sample.turns) == 1 else f"{sample.id}-{index + 1}",
            family=sample.family.value,
            instruction=last.instruction,
            references=tuple(images[number] for number in context),
            answer=None if turn.target is None else images[turn.target] or None,
            answer_text=turn.response if turn.target is None else None,
            condition=_condition(sample.family, turn, instruction, context, place),
            style=_bound("style", turn, instruction, context, place),
            bindings=last.bindings,
            before=tuple(before),
            masks=frozenset(position for number, position in place.items() if number in sample.masks),
        )
        yield index, item


def _context(sample: Sample, turn: int) -> tuple[int, ...]:
    """Numbers of the images before an answer, as in training: a reference that only later turns name comes later."""
    named = [set(parse(one.instruction, references=len(sample.references)).placeholders) for one in sample.turns]
    later = set().union(*named[turn + 1 :]).difference(*named[: turn + 1])
    later &= set(sample.references)  # an earlier answer stands where it was made
    return tuple(number for number in sample.context(turn) if number not in later)


def _renumbered(turn: Turn, place: dict[int, int]) -> Turn:
    """A turn whose images are numbered by their positions among an item's references.

    A binding to an image that only a later turn shows says nothing yet, and is left out.
    """
    if all(number == position for number, position in place.items()):
        return replace(turn, bindings=tuple((token, number) for token, number in turn.bindings if number in place))
    return replace(
        turn,
        instruction=renumber(turn.instruction, place),
        target=None if turn.target is None else place.get(turn.target),
        bindings=tuple((token, place[number]) for token, number in turn.bindings if number in place),
    )


def _condition(
    family: Family, turn: Turn, instruction: Instruction, context: tuple[int, ...], place: dict[int, int]
) -> int:
    """The control map: only the layout family has one, under `<layout>`, else its only reference."""
    if family is not Family.LAYOUT:
        return 0
    return _bound("layout", turn, instruction, context, place) or (1 if len(context) == 1 else 0)


def _bound(token: str, turn: Turn, instruction: Instruction, context: tuple[int, ...], place: dict[int, int]) -> int:
    """The position of the reference that the first such attribute token speaks of, 0 without."""
    unnamed = [number for number in context if number not in instruction.placeholders]
    groups = instruction.groups(before=unnamed, bindings=dict(turn.bindings))
    for name, number in zip(instruction.attributes, groups, strict=True):
        if name == token and number in place:
            return place[number]
    return 0
