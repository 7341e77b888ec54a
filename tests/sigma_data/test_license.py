"""License names: one spelling for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma_data.license import forbids_derivatives, matches_license, normalize_license


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc_by_nc_sa_4.0", "cc-by-nc-sa-4.0"),
        ("CC-BY-NC-ND-4.0", "cc-by-nc-nd-4.0"),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "cc-by-nc-nd-4.0"),
        ("creativecommons.org/licenses/by/2.0/legalcode", "cc-by-2.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International", "cc-by-nc-nd-4.0"),
        ("Creative Commons Attribution-ShareAlike 3.0 Unported", "cc-by-sa-3.0"),
        ("CC0", "cc0-1.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("Apache-2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("The MIT License", "mit"),
        ("MIT", "mit"),
        ("", "unknown"),
        ("None", "unknown"),
        ("n/a", "unknown"),
        ("Unknown", "unknown"),
        ("SA-1B research license", "sa-1b-research"),
        ("mixed", "mixed"),
    ],
)
def test_spellings_of_a_license_are_one(written: str, name: str) -> None:
    assert normalize_license(written) == name


@given(st.text(max_size=60))
def test_a_normal_name_stays_as_it_is(text: str) -> None:
    once = normalize_license(text)
    assert once
    assert normalize_license(once) == once


@pytest.mark.parametrize(
    ("name", "forbids"),
    [
        ("cc-by-nc-nd-4.0", True),
        ("CC BY-ND 2.0", True),
        ("Attribution-NoDerivs 3.0", True),
        ("cc-by-nc-4.0", False),
        ("standard", False),
        ("unknown", False),
        ("ndl-1.0", False),
    ],
)
def test_licenses_that_forbid_derivatives_are_known_by_their_words(name: str, forbids: bool) -> None:
    assert forbids_derivatives(name) is forbids


def test_a_pattern_matches_in_any_spelling() -> None:
    assert matches_license("CC BY-NC 4.0", ["cc-by-nc*"])
    assert matches_license("apache license 2.0", ["Apache-2.0"])
    assert not matches_license("cc-by-4.0", ["cc-by-nc*", "mit"])
