"""The settings of injection: who places the tokens, and how a language model is asked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath
from sigma_data.storage.paths import local_path

TEMPERATURE = 0.0


class ModelSettings(StrictModel):
    """A language model, and what else decides its replies."""

    name: str = ""
    """The model's name at the endpoint."""
    seed: int = 0
    """Sent with every request; servers may ignore it."""
    max_tokens: int = Field(400, ge=50)
    """Most tokens of a reply."""


class EndpointSettings(StrictModel):
    """Where the model is asked, how fast, and at what cost at most. Nothing here changes a corpus."""

    base_url: str = ""
    """Address of an OpenAI-compatible server up to /v1, e.g. http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key; without it no key is sent."""
    cache: LocalPath | None = None
    """File of replies (SQLite); by default injection.sqlite in `$SIGMA_CACHE`, or in ~/.cache/sigma."""
    concurrency: int = Field(4, ge=1, le=256)
    """Requests under way at a time."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Most requests that begin within a minute."""
    timeout: float = Field(60.0, gt=0)
    """Seconds to wait for a reply."""
    max_requests: int | None = Field(None, ge=0)
    """Most requests of a run; behind it the rules go on alone."""
    max_tokens_total: int | None = Field(None, ge=0)
    """Most tokens of a run, of prompts and replies together."""
    max_cost: float | None = Field(None, ge=0)
    """Most that a run may cost, in the currency of the prices."""
    price_prompt: float = Field(0.0, ge=0)
    """Price of a million tokens of prompts."""
    price_reply: float = Field(0.0, ge=0)
    """Price of a million tokens of replies."""

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not re.match(r"https?://[^/\s]", value):
            raise ValueError("write an address that begins with http:// or https://")
        if "@" in value.split("//")[-1].split("/")[0] or "?" in value:
            raise ValueError("an address must hold no password and no key: name a variable with api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            raise ValueError("name an environment variable in capitals, e.g. OPENAI_API_KEY, never the key itself")
        return value


class InjectionSettings(StrictModel):
    """Attribute tokens and image placeholders for the captions of sources that have none.

    See docs/injection.md. Sources whose instructions have their tokens already are left as they are.
    """

    by: Literal["none", "rules", "model"] = "none"
    """Who places them: nobody, the rules, or a language model with the rules to fall back on."""
    plain_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of samples that keep their plain wording, drawn by the sample's id (0.2 is recommended); layout and
    relation need their frames and always have them."""
    model: ModelSettings = ModelSettings()
    """The language model."""
    endpoint: EndpointSettings = EndpointSettings()
    """Where it is asked."""

    def shaping(self) -> dict[str, Any]:
        """The settings that decide a corpus: those of a model count only if it is asked."""
        found = self.model_dump(mode="json", exclude={"endpoint"})
        if self.by != "model":
            del found["model"]
        return found if self.by != "none" else {"by": "none"}


def cache_file(settings: EndpointSettings) -> Path:
    """The file of replies."""
    if settings.cache is not None:
        return settings.cache
    return local_path(os.environ.get("SIGMA_CACHE") or "~/.cache/sigma") / "injection.sqlite"
