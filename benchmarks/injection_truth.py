"""Injected captions against what is right of them: which phrases get a token, which image each speaks of, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sigma_data.injection import Injection, Reference, Request, contract, inject
from sigma_data.injection.rules import all_frames
from sigma_data.sample import Family


def injection_differences(folder: Path, truth: dict[str, Any]) -> tuple[int, list[str]]:
    """How many captions of `cases.jsonl` were injected, and the differences. Raises OSError, ValueError."""
    lines = (folder / "cases.jsonl").read_text("utf-8").splitlines()
    cases = {case["id"]: case for case in map(json.loads, filter(str.strip, lines))}
    right = {row["id"]: row for row in truth["rows"]}
    differences = [
        f"{key}: is only in one of cases.jsonl and TRUTH.json" for key in sorted(cases.keys() ^ right.keys())
    ]
    for key in sorted(cases.keys() & right.keys()):
        request = _request(cases[key])
        differences += [f"{key}: {one}" for one in _compare(right[key], request, inject(request))]
    return len(cases), differences


def _request(case: dict[str, Any]) -> Request:
    references = tuple(Reference(one["image"], one.get("kind"), one.get("label")) for one in case["references"])
    return Request(Family(case["family"]), case["caption"], references)


def _compare(right: dict[str, Any], request: Request, found: Injection) -> list[str]:
    """The differences; the rendering may be another, as long as it keeps the contract."""
    if found.refused != right["decline"]:
        told = f"refused ({found.code}: {found.message})" if found.refused else f"injected as {found.instruction!r}"
        return [f"{request.caption!r} is {told}, right is {'declined' if right['decline'] else repr(right['example'])}"]
    differences = []
    ours = [(_text(one.text, one.in_frame), one.token, one.image) for one in found.phrases]
    wanted = [(_text(one["text"], one["in_frame"]), one["token"], one["image"]) for one in right["phrases"]]
    if sorted(ours) != sorted(wanted):
        differences.append(f"{request.caption!r} binds {ours}, right is {wanted}")
    if not found.refused and right.get("words_kept", True):
        problem = contract.check(found.instruction, request, frames=all_frames(request), bindings=found.bindings)
        if problem is not None:
            differences.append(f"{found.instruction!r} breaks the contract ({problem.code}: {problem.message})")
    return differences


def _text(text: str, in_frame: bool) -> str:
    """The words of a caption's phrase; those of a frame are drawn, so any will do."""
    return "(frame)" if in_frame else " ".join(text.casefold().split())
