"""What an injection did, asked or would ask, in lines for people."""

from __future__ import annotations

from pipelines.inject.ask import AskReport, Estimate
from pipelines.inject.config import InjectionSettings
from pipelines.inject.run import InjectResult
from sigma_data.text_format import counted


def shown(result: InjectResult) -> str:
    """The result in a few lines."""
    lines = [counted(result.captions, "caption")]
    lines += [f"  {name:<18} {count:>8,}" for name, count in sorted(result.outcomes.items())]
    if result.codes:
        lines.append("reasons: " + ", ".join(f"{code} {count:,}" for code, count in result.codes.most_common()))
    if result.asked is not None:
        lines += asked_lines(result.asked)
    by_family: dict[str, list[str]] = {}
    for (family, token), count in sorted(result.attributes.items(), key=lambda one: (one[0][0], -one[1], one[0][1])):
        by_family.setdefault(family, []).append(f"{token} {count:,}")
    lines += [f"  {family:<14} {', '.join(tokens)}" for family, tokens in by_family.items()]
    return "\n".join(lines) + "\n"


def asked_lines(asked: AskReport) -> list[str]:
    """What a model was asked, in a few lines."""
    tokens = asked.prompt_tokens + asked.reply_tokens
    each = tokens / max(asked.captions, 1)
    answered = ", ".join(f"{name} {count:,}" for name, count in asked.answered.most_common()) or "none"
    lines = [f"model: {counted(asked.captions, 'caption')}: {answered}"]
    lines.append(f"  {asked.requests:,} requests, {tokens:,} tokens ({each:,.0f} a caption), cost {asked.cost:,.2f}")
    if asked.codes:
        codes = ", ".join(f"{code} {count:,}" for code, count in asked.codes.most_common())
        lines.append(f"  no usable reply: {codes}")
    if asked.reached is not None:
        lines.append(f"  endpoint.{asked.reached} is reached: the other captions were left to the rules")
    return lines


def estimate_lines(found: Estimate, settings: InjectionSettings) -> str:
    """An estimate in a few lines."""
    if settings.by != "model":
        return f"{counted(found.captions, 'caption')}; the rules ask nobody\n"
    share = 100 * found.cached / max(found.captions, 1)
    lines = [
        f"{counted(found.captions, 'caption')} to ask, {found.cached:,} ({share:.0f} %) of them cached",
        f"about {found.prompt_tokens:,} tokens of prompts, {found.reply_tokens:,} of replies, cost {found.cost:,.2f}",
        "nothing was asked",
    ]
    return "\n".join(lines) + "\n"
