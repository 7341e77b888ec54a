"""Asking a model for many captions at once, and keeping the replies; the order of replies changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from pipelines.inject.budget import Budget, estimated_tokens
from pipelines.inject.cache import Cache, Reply
from pipelines.inject.config import InjectionSettings
from pipelines.inject.decide import key_of, question
from pipelines.inject.endpoint import BUDGET, STOPPED, Answer, Endpoint
from sigma_data.injection import Injection, Request
from sigma_data.injection.contract import Problem
from sigma_data.injection.prompt import correction, messages
from sigma_data.injection.reply import read_reply

CONTENT_TRIES = 3
"""The first reply and at most two more after ones that cannot be used."""
_UNANSWERED = frozenset((BUDGET, STOPPED, "no_answer", "http_error"))


@dataclass
class AskReport:
    """What a run asked: captions by how they were answered, failures by code, what it took.

    `answered` counts cached, first try, retried, and fallback rules (asked in vain or not at all).
    """

    captions: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    reached: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "answered": dict(self.answered), "codes": dict(self.codes)}


@dataclass
class Estimate:
    """What a run would ask: captions, how many of them have a reply, and what the others take at about."""

    captions: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0


def estimate(requests: Iterable[Request], settings: InjectionSettings, cache: Cache) -> Estimate:
    """Count without a request: a token is four characters, a reply about as long as its caption twice and the JSON."""
    found = Estimate()
    for key, asked in _questions(requests, settings):
        found.captions += 1
        if cache.get(key) is not None:
            found.cached += 1
            continue
        found.prompt_tokens += sum(estimated_tokens(message["content"]) for message in messages(asked))
        found.reply_tokens += min(2 * estimated_tokens(asked.caption) + 60, settings.model.max_tokens)
    prices = settings.endpoint
    found.cost = (found.prompt_tokens * prices.price_prompt + found.reply_tokens * prices.price_reply) / 1e6
    return found


def ask_all(
    requests: Iterable[Request],
    settings: InjectionSettings,
    cache: Cache,
    *,
    done: Callable[[], None] = lambda: None,
    first_wait: float = 1.0,
) -> AskReport:
    """Ask for every caption that has no reply in the cache. `done` is called for each one.

    Raises EndpointError where the server refuses every request; the replies so far are kept then, and when interrupted.
    `first_wait` is the pause in seconds after a first transport error.
    """
    report, budget = AskReport(), Budget(settings.endpoint)
    open_tasks: dict[Future[Reply | Answer], str] = {}

    def collect(futures: Iterable[Future[Reply | Answer]]) -> None:
        for future in futures:
            key = open_tasks.pop(future)
            found = future.result()
            if isinstance(found, Reply):
                cache.put(key, found)
            _count(report, found)
            done()

    with Endpoint(settings.model, settings.endpoint, budget, first_wait=first_wait) as endpoint:
        pool = ThreadPoolExecutor(settings.endpoint.concurrency, thread_name_prefix="injection")
        try:
            for key, asked in _questions(requests, settings):
                report.captions += 1
                if cache.get(key) is not None:
                    report.answered["cached"] += 1
                    done()
                    continue
                open_tasks[pool.submit(_converse, endpoint, asked)] = key
                if len(open_tasks) >= 2 * settings.endpoint.concurrency:
                    collect(wait(open_tasks, return_when=FIRST_COMPLETED).done)
            while open_tasks:
                collect(wait(open_tasks, return_when=FIRST_COMPLETED).done)
        finally:
            endpoint.stop()
            for future, key in open_tasks.items():  # interrupted: what has come is kept
                if future.done() and not future.cancelled() and future.exception() is None:
                    found = future.result()
                    if isinstance(found, Reply):
                        cache.put(key, found)
            pool.shutdown(wait=False, cancel_futures=True)
    report.requests, report.cost, report.reached = budget.requests, budget.cost, budget.reached
    report.prompt_tokens, report.reply_tokens = budget.prompt_tokens, budget.reply_tokens
    return report


def _questions(requests: Iterable[Request], settings: InjectionSettings) -> Iterator[tuple[str, Request]]:
    """Each different question once, with its key."""
    seen: set[bytes] = set()
    for request in requests:
        asked = question(request)
        if asked is not None:
            key = key_of(asked, settings)
            if (short := bytes.fromhex(key[:32])) not in seen:
                seen.add(short)
                yield key, asked


def _converse(endpoint: Endpoint, asked: Request) -> Reply | Answer:
    """The reply after up to three tries; an Answer where there is none to keep."""
    prompt = base = messages(asked)
    spent = [0, 0]
    problem = Problem("", "")
    content = ""
    for tries in range(1, CONTENT_TRIES + 1):
        answer = endpoint.ask(prompt)
        spent = [spent[0] + answer.prompt_tokens, spent[1] + answer.reply_tokens]
        if answer.code in _UNANSWERED:
            return answer
        content = answer.content
        found = Problem(answer.code, answer.message) if answer.code else read_reply(asked, content)
        if isinstance(found, Injection):
            return Reply(content, "", tries, *spent)
        problem = found
        prompt = base + correction(content, problem.code, problem.message)
    return Reply(content, problem.code, CONTENT_TRIES, *spent)


def _count(report: AskReport, found: Reply | Answer) -> None:
    if isinstance(found, Reply) and not found.code:
        report.answered["first try" if found.requests == 1 else "retried"] += 1
    else:
        report.answered["fallback rules"] += 1
        report.codes[found.code] += 1
