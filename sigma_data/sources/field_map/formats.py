"""Which code reads which format of rows and which place of images."""

from __future__ import annotations

from sigma_data.sources.field_map.archives import ArchiveStore
from sigma_data.sources.field_map.images import ImageStore, RowStore, TreeStore
from sigma_data.sources.field_map.json_rows import JsonRows
from sigma_data.sources.field_map.list_rows import LineRows, MemberRows
from sigma_data.sources.field_map.parquet_rows import ParquetRows
from sigma_data.sources.field_map.rows import RowFormat
from sigma_data.sources.field_map.schema import ImagesMap, RowLayout
from sigma_data.sources.field_map.tar_rows import TarRows
from sigma_data.storage.archive_cache import ArchiveCache
from sigma_data.storage.data_folder import DataFolder

_FORMATS: dict[str, type[RowFormat]] = {
    "json": JsonRows,
    "jsonl": JsonRows,
    "parquet": ParquetRows,
    "webdataset": TarRows,
    "lines": LineRows,
    "members": MemberRows,
}


def format_of(layout: RowLayout, folder: DataFolder) -> RowFormat:
    """What reads the rows of a layout."""
    return _FORMATS[layout.format](folder)


def store_of(images: ImagesMap, folder: DataFolder, cache: ArchiveCache) -> ImageStore:
    """What finds the images of a layout."""
    if images.origin == "archive":
        return ArchiveStore(images, folder, cache)
    return RowStore(images) if images.origin == "bytes" else TreeStore(images, folder)
