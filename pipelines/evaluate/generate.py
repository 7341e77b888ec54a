"""The first stage: what the model makes of every item, in batches that are the same for any number of ranks.

An image's last bits depend on what it is computed with. So batches are cut once, from the list of items
alone; a rank takes whole batches, and a batch appears on disk by rename. Running again does what is missing.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from pipelines.common.answerer import Answerer, Answering
from pipelines.common.together import together_or_each
from pipelines.evaluate.defaults import BATCH, MAX_TOKENS
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.stored import bytes_of, stored_file
from sigma_data.errors import ConfigError, SigmaError, reason_of
from sigma_data.storage.files import disk_error, dump_json
from sigma_model.sampling.generate import Request
from sigma_model.sampling.settings import Order

GENERATED = "generated"
_INDEX = "batch.json"


@dataclass(frozen=True)
class Generation(Answering):
    """How items are answered; all of it is recorded with the results.

    `understanding`: references go to the vision encoder, too.
    """

    max_tokens: int = MAX_TOKENS
    seed: int = 0
    batch: int = BATCH
    order: Order = Order.INTERLEAVED
    understanding: bool = True


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in stretches of `size`: what is computed together, on whatever rank."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def missing(folder: Path, items: Sequence[Item], size: int) -> dict[int, Sequence[Item]]:
    """The batches of `size` that are not there yet, by their numbers."""
    return {
        number: some
        for number, some in enumerate(batches(items, size))
        if not (_folder(folder, number) / _INDEX).is_file()
    }


def shares(missing: Mapping[int, Sequence[Item]], world: int) -> list[dict[int, Sequence[Item]]]:
    """What is missing dealt out to `world` ranks, or to fewer where there are fewer batches."""
    numbers = sorted(missing)
    dealt = [numbers[rank::world] for rank in range(min(world, len(numbers)))]
    return [{number: missing[number] for number in some} for some in dealt]


def generate(
    model: Answerer,
    share: Mapping[int, Sequence[Item]],
    folder: Path,
    generation: Generation,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Answer a share of the batches; `progress(items)` after each.

    An item that cannot be answered is recorded with the reason. Raises BuildError where the disk refuses.
    """
    for number, items in share.items():
        _write(_folder(folder, number), _answers(model, items, generation))
        progress(len(items))


def clean(folder: Path) -> None:
    """Remove what is unfinished, and all where no item at all was answered; nobody else may be at work in `folder`.

    So a mistake that lets everything fail is mended by running again, with other settings where they were at fault.
    """
    made = list((folder / GENERATED).glob("batch-*"))
    whole = [place for place in made if (place / _INDEX).is_file()]
    litter = [*(folder / GENERATED).glob(".*.tmp"), *(place for place in made if place not in whole)]
    for place in [*litter, *(whole if all(map(_failed, whole)) else ())]:
        shutil.rmtree(place, ignore_errors=True)


def results(folder: Path, items: Sequence[Item], size: int) -> Iterator[Result]:
    """What was made of every item, in order, images in their files.

    Raises ConfigError where a batch is missing, damaged or of other items.
    """
    for number, some in enumerate(batches(items, size)):
        place = _folder(folder, number)
        try:
            index: list[dict[str, Any]] = json.loads((place / _INDEX).read_text("utf-8"))
            if [entry["id"] for entry in index] != [item.id for item in some]:
                raise ConfigError(f"{place}: holds answers to other items: choose another folder with --out")
            for entry, item in zip(index, some, strict=True):
                image = stored_file(place / entry["picture"]) if entry["picture"] else None
                yield Result(item, image=image, text=entry["text"], failure=entry["failure"])
        except FileNotFoundError as error:
            if not place.exists():
                raise ConfigError(
                    f"{place}: is not generated yet: run the command without --stage, or with --stage generate"
                ) from None
            raise ConfigError(
                f"{error.filename}: is missing: remove the folder {place} and generate it again"
            ) from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{place}: cannot be read ({reason_of(error)}): remove that folder and generate it again"
            ) from None


def _failed(place: Path) -> bool:
    """Whether no item of a batch was answered; a batch that cannot be read is kept, for `results` to refuse."""
    try:
        return all(entry["failure"] is not None for entry in json.loads((place / _INDEX).read_text("utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _folder(folder: Path, number: int) -> Path:
    return folder / GENERATED / f"batch-{number:06d}"


def _answers(model: Answerer, items: Sequence[Item], generation: Generation) -> list[Result]:
    """A result an item. One that cannot be answered does not stop the others."""
    failures: dict[str, str] = {}
    requests: list[tuple[Item, Request]] = []
    for item in items:
        request = request_of(item, seed=generation.seed, order=generation.order)
        try:
            model.check(request)
            requests.append((item, request))
        except SigmaError as error:
            failures[item.id] = str(error)
    made: dict[str, Result] = {}
    outcomes = together_or_each(model.answers, [request for _, request in requests], SigmaError)
    for (item, _), outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, SigmaError):
            failures[item.id] = str(outcome)
        elif isinstance(outcome, str):
            made[item.id] = Result(item, text=outcome)
        else:
            made[item.id] = Result(item, image=encoded_png(outcome))
    return [made.get(item.id) or Result(item, failure=failures[item.id]) for item in items]


def request_of(item: Item, *, seed: int = 0, order: Order = Order.INTERLEAVED) -> Request:
    """An item as a model is asked it."""
    return Request(
        item.instruction,
        [bytes_of(data) for data in item.references],
        names=[f"reference {number}" for number in range(1, len(item.references) + 1)],
        size=item.size,
        seed=seed,
        name=item.id,
        order=order,
        bindings=item.bindings,
        before=item.before,
        masks=item.masks,
    )


def _write(place: Path, made: Sequence[Result]) -> None:
    """A batch, whole or not at all."""
    scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        index = []
        for number, result in enumerate(made):
            name = f"{number:04d}.png" if result.image is not None else None
            if name is not None and result.image is not None:
                (scratch / name).write_bytes(bytes_of(result.image))
            index.append({"id": result.item.id, "picture": name, "text": result.text, "failure": result.failure})
        (scratch / _INDEX).write_text(dump_json(index), "utf-8")
        scratch.rename(place)
    except OSError as error:
        raise disk_error(error, place) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def encoded_png(image: Pillow.Image) -> bytes:
    """An image as it is kept."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
