"""`sigma inject`: captions of a JSON Lines file into instructions, to try rules, prompts and costs before a build."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipelines.common.progress import ProgressBar
from pipelines.inject.ask import AskReport, Estimate, ask_all, estimate
from pipelines.inject.cache import Cache
from pipelines.inject.config import InjectionSettings, cache_file
from pipelines.inject.decide import opened_decider
from sigma_data.errors import ConfigError, SourceError
from sigma_data.injection import Reference, Request
from sigma_data.injection.samples import Decision
from sigma_data.sample import Family
from sigma_data.settings_base import StrictModel
from sigma_data.storage.files import disk_error, dump_line, with_temporary


class _ReferenceLine(StrictModel):
    image: int = Field(ge=1)
    kind: str | None = None
    label: str | None = None


class CaptionLine(StrictModel):
    """A line of the input. `references` may be their number; `id` draws the frame and comes back with the result."""

    caption: str
    family: Family
    references: tuple[_ReferenceLine, ...] | int
    id: str = ""
    injected: bool = False


@dataclass(frozen=True)
class InjectResult:
    """How many captions ended how, and what was asked if a model was."""

    captions: int
    outcomes: Counter[str]
    codes: Counter[str]
    attributes: Counter[tuple[str, str]]
    asked: AskReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        families: dict[str, dict[str, int]] = {}
        for (family, token), count in sorted(self.attributes.items()):
            families.setdefault(family, {})[token] = count
        return {
            "captions": self.captions,
            "outcomes": dict(self.outcomes),
            "codes": dict(self.codes),
            "attributes": families,
            "model": None if self.asked is None else self.asked.as_dict(),
        }


def inject_file(captions: Path, out: Path | None, settings: InjectionSettings) -> InjectResult:
    """Inject every caption of a file, in its order; `out` gets a line each.

    Raises SourceError for a line that is none, ConfigError and EndpointError where the model cannot be asked.
    """
    _refuse_nobody(settings)
    asked = None
    if settings.by == "model":
        total = sum(1 for _ in read_captions(captions))
        with Cache(cache_file(settings.endpoint)) as cache, ProgressBar("ask", total, "captions") as progress:
            asked = ask_all(read_captions(captions), settings, cache, done=progress.add)
    result = InjectResult(0, Counter(), Counter(), Counter(), asked)
    with opened_decider(settings) as decide:
        lines = ((request, decide(request)) for request in read_captions(captions))
        return _written(lines, out, result)


def estimate_file(captions: Path, settings: InjectionSettings) -> Estimate:
    """What `inject_file` would ask. Makes no request and writes nothing."""
    _refuse_nobody(settings)
    if settings.by != "model":
        return Estimate(sum(1 for _ in read_captions(captions)))
    with Cache(cache_file(settings.endpoint), read_only=True) as cache:
        return estimate(read_captions(captions), settings, cache)


def read_captions(path: Path) -> Iterator[Request]:
    """The requests of a JSON Lines file. Raises SourceError with the number of the first line that is none."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _request(line, f"{path}:{number}")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None


def _request(line: bytes, where: str) -> Request:
    try:
        found = CaptionLine.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(one) for one in first["loc"])
        raise SourceError(
            f"{where}: {place or 'the line'}: {first['msg']}; a line is "
            '{"caption": "...", "family": "editing", "references": [{"image": 1}]}'
        ) from None
    given = found.references
    if isinstance(given, int):
        given = tuple(_ReferenceLine(image=image) for image in range(1, min(given, 999) + 1))
    references = tuple(Reference(one.image, one.kind, one.label) for one in given)
    return Request(found.family, found.caption, references, key=found.id or found.caption, injected=found.injected)


def _refuse_nobody(settings: InjectionSettings) -> None:
    if settings.by == "none":
        raise ConfigError("by=none injects nothing: write by=rules or by=model")


def _written(lines: Iterator[tuple[Request, Decision]], out: Path | None, result: InjectResult) -> InjectResult:
    count = 0

    def texts() -> Iterator[str]:
        nonlocal count
        for request, decision in lines:
            count += 1
            found = decision.injection
            result.outcomes[f"{decision.by}: {found.outcome}"] += 1
            if code := found.code or decision.fallback:
                result.codes[code] += 1
            result.attributes.update((found.family.value, phrase.token) for phrase in found.phrases)
            yield dump_line({
                "id": request.key,
                "family": found.family.value,
                "instruction": found.instruction,
                "outcome": found.outcome,
                "by": decision.by,
                "phrases": [vars(phrase) for phrase in found.phrases],
                "bindings": [list(pair) for pair in found.bindings],
                "replaced": list(found.replaced),
                "code": found.code,
                "message": found.message,
                "fallback": decision.fallback,
            })  # fmt: skip

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(texts())

    if out is None:
        for _ in texts():
            pass
    else:
        try:
            with_temporary(out, write)
        except OSError as error:
            raise disk_error(error, out) from None
    return InjectResult(count, result.outcomes, result.codes, result.attributes, result.asked)
