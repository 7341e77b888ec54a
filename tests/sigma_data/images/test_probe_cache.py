"""Remembering pictures saves decoding and changes no result."""

from __future__ import annotations

import pytest
from support.image_files import image_bytes

import sigma_data.images.probe_cache
from sigma_data.images.decode import DEFAULT_MAX_PIXELS, ImageFault, probe
from sigma_data.images.probe_cache import ProbeCache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was really decoded."""
    seen: list[int] = []

    def counting(data: bytes | None, **options: object) -> object:
        seen.append(len(data or b""))
        return probe(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sigma_data.images.probe_cache, "probe", counting)
    return seen


def test_a_picture_met_again_is_not_decoded_again_and_has_the_same_facts(decoded: list[int]) -> None:
    look = ProbeCache(max_pixels=DEFAULT_MAX_PIXELS)
    for _ in range(3):
        for seed in range(4):
            assert look(image_bytes("png", seed)) == probe(image_bytes("png", seed))
    assert len(decoded) == 4


def test_a_fault_is_remembered_with_its_code_and_words(decoded: list[int]) -> None:
    look = ProbeCache(max_pixels=DEFAULT_MAX_PIXELS)
    broken = image_bytes("png", 1)[:300]
    raised = []
    for _ in range(2):
        with pytest.raises(ImageFault) as fault:
            look(broken)
        raised.append(fault.value)
    assert [(fault.code, str(fault)) for fault in raised] == [("truncated", str(raised[0]))] * 2
    assert raised[0] is not raised[1], "a raised exception carries its traceback, so it is not raised twice"
    assert len(decoded) == 1


def test_only_so_many_pictures_are_remembered(decoded: list[int]) -> None:
    look = ProbeCache(max_pixels=DEFAULT_MAX_PIXELS, capacity=2)
    for seed in (1, 2, 3, 1):
        look(image_bytes("png", seed))
    assert len(decoded) == 4


@pytest.mark.parametrize("nothing", [None, b""])
def test_nothing_is_empty(nothing: bytes | None) -> None:
    with pytest.raises(ImageFault, match="no bytes"):
        ProbeCache(max_pixels=DEFAULT_MAX_PIXELS)(nothing)
