"""One caption's outcome: from the rules, or from the model's reply in the cache with the rules to fall back on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipelines.inject.cache import Cache
from pipelines.inject.config import TEMPERATURE, InjectionSettings, cache_file
from sigma_data.injection import Injection, Request
from sigma_data.injection.prompt import PROMPT_VERSION, cache_key, numbered
from sigma_data.injection.reply import read_reply
from sigma_data.injection.rules import frame_of, routed, settled
from sigma_data.injection.samples import Decision, by_rules
from sigma_data.instruction import renumber


def question(request: Request) -> Request | None:
    """What a model is asked for a request, its images numbered from 1; None where the rules alone decide.

    They do for captions that are settled (injected already, hostile) and for families whose frame names the references.
    """
    request = routed(request)
    if settled(request) is not None or frame_of(request) is not None:
        return None
    found = numbered(request)
    return None if found is None else found[0]


def key_of(asked: Request, settings: InjectionSettings) -> str:
    """The place of a question's reply in the cache."""
    return cache_key(asked, model=settings.model.name, seed=settings.model.seed, temperature=TEMPERATURE)


@contextmanager
def opened_decider(settings: InjectionSettings) -> Iterator[Callable[[Request], Decision]]:
    """The function that decides a caption, with the cache open if a model's replies are in it."""
    if settings.by != "model":
        yield by_rules
        return
    with Cache(cache_file(settings.endpoint), read_only=True) as cache:
        yield decider(settings, cache)


def decider(settings: InjectionSettings, cache: Cache) -> Callable[[Request], Decision]:
    """The function that decides a caption; it makes no request."""

    def decide(request: Request) -> Decision:
        asked = question(request)
        if asked is None:
            return by_rules(request)
        reply = cache.get(key_of(asked, settings))
        if reply is None:
            return replace(by_rules(request), fallback="no_reply")
        if reply.code:
            return replace(by_rules(request), fallback=reply.code)
        found = read_reply(asked, reply.content)
        if not isinstance(found, Injection):
            return replace(by_rules(request), fallback=found.code)
        return Decision(_with_own_numbers(found, routed(request)), by="model")

    return decide


def model_note(settings: InjectionSettings) -> dict[str, object]:
    """What a record says of the model that decided it."""
    return {"model": settings.model.name, "prompt_version": PROMPT_VERSION}


def _with_own_numbers(found: Injection, request: Request) -> Injection:
    """An injection of the question as one of the request."""
    back = {place: one.image for place, one in enumerate(request.references, start=1)}
    return replace(
        found,
        instruction=renumber(found.instruction, back),
        phrases=tuple(replace(phrase, image=back[phrase.image]) for phrase in found.phrases),
        bindings=tuple((token, back[image]) for token, image in found.bindings),
    )
