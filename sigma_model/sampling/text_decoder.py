"""Text out of a model: contexts prefilled once, then a token of every answer a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sigma_data.loading.batch import Specials
from sigma_data.loading.collate import collate
from sigma_model.attention import Backend
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.cache import Cache, cached_attention, prefill
from sigma_model.sampling.context import Context
from sigma_model.sampling.settings import MAX_TOKENS, TEMPERATURE


@torch.no_grad()
def decode_text(
    model: SigmaModel,
    contexts: Sequence[Context],
    specials: Specials,
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    seeds: Sequence[int] | None = None,
    group_mask: bool = True,
    backend: Backend = Backend.AUTO,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Token ids of every context's answer, without delimiters; stops at the end token or `max_tokens`.

    Temperature 0 takes the likeliest token. Otherwise each context draws from its own generator, so
    its answer does not depend on the others. `progress(done, max_tokens)` is called after every token; what it raises
    ends the answer.
    """
    if not contexts:
        return []
    prefixes = [sum(segment.length for segment in context.prefix) for context in contexts]
    cache = Cache(model.config.language, [p + max_tokens for p in prefixes], dtype=model.dtype, device=model.device)
    items = [replace(context.item, segments=context.prefix) for context in contexts]
    batch = collate(items, specials, widths(model.config)).to(model.device)
    prefill(model, batch, cache, group_mask=group_mask, backend=backend)
    generators = [torch.Generator().manual_seed(seed) for seed in (range(len(contexts)) if seeds is None else seeds)]
    ids = torch.full((len(contexts),), specials.bos, device=model.device)
    positions = torch.tensor([context.end for context in contexts], device=model.device)
    starts = torch.tensor([s + p for s, p in zip(cache.starts, prefixes, strict=True)], device=model.device)
    order = torch.arange(len(contexts), device=model.device)
    no_latents = torch.zeros(0, model.config.language.hidden_size, dtype=model.dtype, device=model.device)
    found: list[list[int]] = [[] for _ in contexts]
    running = set(range(len(contexts)))
    for step in range(max_tokens):
        spans = [(s, s + p + step + 1) for s, p in zip(cache.starts, prefixes, strict=True)]
        attend = cached_attention(cache, starts + step, order, [1] * len(contexts), spans, backend=backend)
        und, _ = model.backbone(model.backbone.embed_tokens(ids), no_latents, positions + step, attend)
        logits = model.lm_head(und).float()
        ids = _choose(logits, temperature, generators)
        for number, token in enumerate(ids.tolist()):
            if token == specials.eos:
                running.discard(number)
            elif number in running:
                found[number].append(token)
        if progress is not None:
            progress(step + 1, max_tokens)
        if not running:
            break
    return found


def _choose(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    """[contexts, V] -> [contexts]."""
    if temperature <= 0:
        return logits.argmax(-1)
    chances = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(chances, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)
