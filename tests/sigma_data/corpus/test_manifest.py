"""Columns of the manifest that follow from the record alone."""

from __future__ import annotations

import json

import pytest

from sigma_data.corpus.manifest import sample_columns
from sigma_data.sample import Family, Sample, Source


@pytest.mark.parametrize(
    ("provenance", "made"),
    [
        (None, None),
        (json.dumps({"resolved": ["bytes"]}), None),
        (json.dumps({"made": {"rule": "reversed", "from": ["a", "b"]}}), "reversed: a, b"),
        (json.dumps({"made": "somehow"}), None),
        (json.dumps({"made": {"rule": "reversed"}}), None),
        (json.dumps(["made"]), None),
        ('{"made"', None),
    ],
)
def test_a_made_sample_names_its_rule_and_what_it_is_made_of(provenance: str | None, made: str | None) -> None:
    sample = Sample("id", Family.SELECTIVE, (), (), Source("s", "file", 0), provenance=provenance)
    assert sample_columns(sample)["made"] == made
