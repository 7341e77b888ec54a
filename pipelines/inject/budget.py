"""Requests, tokens and cost of a run, held against their limits before each request."""

from __future__ import annotations

import threading

from pipelines.inject.config import EndpointSettings

CHARACTERS_A_TOKEN = 4
"""Characters of text a token, where a server does not tell how many it counted."""


def estimated_tokens(text: str) -> int:
    """Tokens of a text, rounded up."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


class Budget:
    """What a run has spent, and what the requests under way may spend at most. Used from many threads."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._reserved = (0, 0)
        self.requests = 0
        self.prompt_tokens = 0
        self.reply_tokens = 0
        self.reached: str | None = None
        """The limit that stopped the requests, None if none did."""

    @property
    def cost(self) -> float:
        """Spent, in the currency of the prices."""
        return self._cost(self.prompt_tokens, self.reply_tokens)

    def reserve(self, prompt: int, reply: int) -> bool:
        """Set a request's worst case aside; False if a limit could be passed by it, and from then on."""
        with self._lock:
            if self.reached is None:
                self.reached = self._over(prompt + self._reserved[0], reply + self._reserved[1])
            if self.reached is not None:
                return False
            self.requests += 1
            self._reserved = (self._reserved[0] + prompt, self._reserved[1] + reply)
            return True

    def settle(self, reserved: tuple[int, int], spent: tuple[int, int]) -> None:
        """Count what a request took in the end in the place of its worst case."""
        with self._lock:
            self._reserved = (self._reserved[0] - reserved[0], self._reserved[1] - reserved[1])
            self.prompt_tokens += spent[0]
            self.reply_tokens += spent[1]

    def _over(self, prompt: int, reply: int) -> str | None:
        limits = self._settings
        if limits.max_requests is not None and self.requests >= limits.max_requests:
            return "max_requests"
        prompt, reply = self.prompt_tokens + prompt, self.reply_tokens + reply
        if limits.max_tokens_total is not None and prompt + reply > limits.max_tokens_total:
            return "max_tokens_total"
        if limits.max_cost is not None and self._cost(prompt, reply) > limits.max_cost:
            return "max_cost"
        return None

    def _cost(self, prompt: int, reply: int) -> float:
        return (prompt * self._settings.price_prompt + reply * self._settings.price_reply) / 1e6
