"""The folder of an evaluation: for one process at a time and one set of settings.

`settings.json` says all that images were made from. Going on under other settings would mix two runs,
so it is refused; where things lie, what the run is called, and versions of programs may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.common.folder_lock import LOCK, FolderLock, refuse_other_settings
from pipelines.common.inference_config import OF_IMAGES, OF_TEXT
from pipelines.evaluate.generate import GENERATED, Generation
from pipelines.evaluate.item import Item
from pipelines.evaluate.questions import QuestionSet
from pipelines.evaluate.stored import sha256_of
from sigma_data.errors import ConfigError, reason_of
from sigma_data.sequence.tokenizer_reader import TOKENIZER_FILES
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_model.config import VAE_FILE, find_file, weight_files
from sigma_model.loading import ModelDescription
from sigma_model.omnigen2.settings import Omnigen2Generation
from sigma_model.sampling.settings import CacheMethod, Solver, StepCaching

SETTINGS = "settings.json"

_MAY_CHANGE = frozenset({"name", "benchmark", "model", "base", "torch", "sigma"})
"""What a later run into the folder may change: names and places, which change no image, and `_VERSIONS`."""

_VERSIONS = ("torch", "sigma")
"""What may change an image's last bits, and needs no new start: all that made images are recorded."""

_THEN = ", then "

_STRETCH, _STRETCHES = 2**16, 1024


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the folder, made where it is not there.

    Raises ConfigError where it belongs to something else, or another process is at work there.
    """
    try:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file: choose another place with --out")
        if out.exists() and not (out / SETTINGS).exists() and {path.name for path in out.iterdir()} - {LOCK}:
            raise ConfigError(f"{out} is not empty and holds no evaluation: choose another place with --out")
        lock = FolderLock(out / LOCK, "evaluation")
    except OSError as error:
        raise disk_error(error, out) from None
    try:
        yield
    finally:
        lock.release()


def read(out: Path) -> dict[str, Any]:
    """The settings of the evaluation in `out`. Raises ConfigError if there is none."""
    try:
        settings: dict[str, Any] = json.loads((out / SETTINGS).read_text("utf-8"))
        for name in ("name", "benchmark", "split", "limit", "items", "batch"):
            settings[name]
        # What folders of older versions do not say.
        settings.setdefault("understanding", True)
        settings.setdefault("temperature", 0.0 if settings.get("words") else None)
        if (solver := settings.pop("solver", None)) is not None and Solver(solver) is not Solver.EULER:
            settings["sampler"] = Solver(solver).value
    except FileNotFoundError:
        raise ConfigError(f"{out}: holds no evaluation: name a folder that sigma eval has written to") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{out / SETTINGS}: cannot be read ({reason_of(error)}): choose another folder") from None
    return settings


def enter(out: Path, settings: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """Write the settings, and return them with the versions that made, or will make, what is there.

    Where all is `complete` those are the recorded ones. Raises ConfigError where something was generated there under
    other settings, naming them.
    """
    entered = dict(settings)
    if (out / SETTINGS).exists() and any((out / GENERATED).glob("batch-*")):
        there = read(out)
        differ = [
            f"{name} ({_shown(there.get(name))} there, {_shown(settings.get(name))} now)"
            for name in dict.fromkeys([*settings, *there])
            if name not in _MAY_CHANGE and there.get(name) != settings.get(name)
        ]
        refuse_other_settings(out, differ)
        for name in _VERSIONS:
            made_by, now = there.get(name), entered[name]
            if made_by is not None:
                same = complete or made_by.split(_THEN)[-1] == now
                entered[name] = made_by if same else f"{made_by}{_THEN}{now}"
    write(out, entered)
    return entered


def write(out: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings as they are. Raises BuildError where the disk refuses."""
    try:
        write_atomic(out / SETTINGS, dump_json(dict(settings)))
    except OSError as error:
        raise disk_error(error, out) from None


def flat(generation: Generation) -> dict[str, Any]:
    """Everything that says how items are answered, by the names of the command's options."""
    settings, guidance = generation.settings, generation.settings.guidance
    found = {
        "layout": generation.order.value,
        "seed": generation.seed,
        "batch": generation.batch,
        "group_mask": settings.group_mask,
        "steps": settings.steps,
        "timestep_shift": settings.timestep_shift,
        "text_scale": guidance.text,
        "image_scale": guidance.image,
        "interval": list(guidance.interval),
        "rescale": guidance.rescale.value,
        "rescale_min": guidance.rescale_min,
        "words": generation.text,
        "max_tokens": generation.max_tokens if generation.text else None,
        "temperature": generation.temperature if generation.text else None,
        "understanding": generation.understanding,
    }
    if generation.omnigen2 is None:
        return found | _faster(settings.sampler.value, settings.cache, settings.guidance_threshold)
    sampling = generation.omnigen2.sampling
    return (
        found
        | dict.fromkeys(("group_mask", "timestep_shift", "rescale", "rescale_min", "understanding"))
        | {
            "steps": sampling.steps,
            "text_scale": sampling.text_scale,
            "image_scale": sampling.image_scale,
            "interval": list(sampling.interval),
            "step_cache": None if sampling.cache is None else sampling.cache.value,
            "negative": generation.omnigen2.negative,
            "route": generation.omnigen2.route.value,
        }
        | _faster(sampling.sampler.value, sampling.reuse, sampling.guidance_threshold)
    )


def _faster(sampler: str, cache: StepCaching, guidance_threshold: float) -> dict[str, Any]:
    """How fewer evaluations are made, by the names of the options: None where nothing is, as in older folders."""
    recorded = {} if cache.method is CacheMethod.NONE else cache.recorded
    return {
        "sampler": None if sampler == Solver.EULER else sampler,
        "cache": recorded.get("method"),
        "cache_every": recorded.get("every"),
        "cache_order": recorded.get("order"),
        "cache_threshold": recorded.get("threshold"),
        "cache_polynomial": list(recorded["polynomial"]) if "polynomial" in recorded else None,
        "guidance_threshold": guidance_threshold or None,
    }


def refuse_unused(generation: Generation, benchmark: str) -> None:
    """Raise ConfigError where a setting of images is changed and answers are text, or the other way round."""
    names: tuple[str, ...] = OF_IMAGES if generation.text else OF_TEXT
    other = None if generation.omnigen2 is None else Omnigen2Generation()
    usual = replace(Generation(text=generation.text), omnigen2=other)
    was, now = (
        flat(one) | {name: getattr(one, name) for name in OF_TEXT}  # `flat` leaves them out of images
        for one in (usual, generation)
    )
    for name in names:
        if was.get(name) != now.get(name):
            option, kind = f"--{name.replace('_', '-')}", "text" if generation.text else "images"
            raise ConfigError(f"benchmark {benchmark} is answered with {kind}: leave {option} out")


def flat_questions(questions: QuestionSet) -> dict[str, Any]:
    """The choice of questions by names of settings; older folders do not have all of them, which means None."""
    size = None if questions.size is None else list(questions.size)
    return {"split": questions.split, "limit": questions.limit, "size": size, "images_per_prompt": questions.images}


def questions(settings: Mapping[str, Any]) -> QuestionSet:
    """The questions that `flat_questions` recorded."""
    size = settings.get("size")
    return QuestionSet(
        split=settings["split"],
        limit=settings["limit"],
        size=None if size is None else (size[0], size[1]),
        images=settings.get("images_per_prompt"),
    )


def digest_of_items(items: Sequence[Item]) -> str:
    """The first 16 digits of SHA-256 over all questions and answers."""
    state = hashlib.sha256()
    for item in items:
        images = [sha256_of(data) for data in (*item.references, item.answer or b"")]
        parts = [item.id, item.family, item.instruction, item.answer_text, item.size, item.condition, item.style]
        state.update(dump_json([*parts, images]).encode())
    return state.hexdigest()[:16]


def digest_of_model(description: ModelDescription) -> str:
    """The first 16 digits of SHA-256 over a model's configuration, tokenizer and weights.

    Of files larger than 64 MB, 1,024 stretches spread evenly are read: other weights differ everywhere.
    """
    tokenizer = (find_file(name, *description.places) for name in TOKENIZER_FILES)
    files = [*weight_files(description.directory), find_file(VAE_FILE, *description.places), *tokenizer]
    return digest_of_files(files, description.config.model_dump_json())


def digest_of_files(files: Iterable[Path], text: str = "") -> str:
    """The same over a text and files, of which some may not be there."""
    state = hashlib.sha256(text.encode())
    for path in files:
        if path.exists():
            _add_file(state, path)
    return state.hexdigest()[:16]


def _add_file(state: Any, path: Path) -> None:
    size = path.stat().st_size
    state.update(f"{path.name}:{size}".encode())
    with path.open("rb") as file:
        if size <= _STRETCH * _STRETCHES:
            while part := file.read(_STRETCH):
                state.update(part)
            return
        for number in range(_STRETCHES):
            file.seek((size - _STRETCH) * number // (_STRETCHES - 1))
            state.update(file.read(_STRETCH))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
