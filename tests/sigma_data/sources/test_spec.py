"""Source strings of settings: mappings and relative paths."""

from __future__ import annotations

import pytest

from pipelines.build_dataset.config import BuildConfig
from sigma_data.sources import open_source
from sigma_data.sources.spec import source_below, source_of_mapping


def test_a_mapping_is_a_source_string() -> None:
    assert source_of_mapping({"source": "release", "path": "a b"}) == "release:a b"
    mapping = {"source": "world", "path": 12, "size": 64, "families": ["editing", "layout"], "attributes": False}
    assert source_of_mapping(mapping) == "world:12?size=64&families=editing,layout&attributes=false"
    reader = open_source(source_of_mapping({"source": "release", "path": "x?n=1", "name": "a&b c", "license": "mit"}))
    assert (reader.path, reader.name) == ("x?n=1", "a&b c")


@pytest.mark.parametrize("mapping", [{"path": "x"}, {"source": "release"}, {"source": 3, "path": "x"}, {}])
def test_a_mapping_without_layout_or_path_is_refused(mapping: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="source: LAYOUT, path: PATH"):
        source_of_mapping(mapping)


@pytest.mark.parametrize(
    ("spec", "placed"),
    [
        ("release:x", "release:/data/x"),
        ("release:x?license=mit", "release:/data/x?license=mit"),
        ("release:x??n=1?license=mit", "release:/data/x??n=1?license=mit"),
        ("release:.", "release:/data"),
        ("release:./x", "release:/data/x"),
        ("release:/x", "release:/x"),
        ("release:~/x", "release:~/x"),
        ("release:s3://bucket/x", "release:s3://bucket/x"),
        ("world:12?size=64", "world:12?size=64"),
        ("hf:OWNER/NAME", "hf:OWNER/NAME"),
        ("map:my.yaml?root=x&license=mit", "map:my.yaml?root=/data/x&license=mit"),
    ],
)
def test_relative_paths_begin_at_the_data_folder(spec: str, placed: str) -> None:
    assert source_below(spec, "/data") == placed
    assert source_below(spec, "") == spec


def test_settings_take_both_forms() -> None:
    config = BuildConfig.model_validate({"data": "d", "sources": [{"source": "release", "path": "a"}, "world:3"]})
    assert config.sources == ("release:a", "world:3")
    assert config.specs == ("release:d/a", "world:3")
