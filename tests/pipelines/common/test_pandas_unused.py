"""A worker that makes arrow tables does not import pandas for it, and can still use it."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pyarrow as pa
import pytest

from pipelines.common.pandas_unused import leave_pandas_out
from pipelines.common.process_pool import ProcessPool

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="no pandas here")


def make_tables(_: Any) -> tuple[bool, int]:
    leave_pandas_out()
    table = pa.Table.from_pylist([{"a": 1}, {"a": 2}])
    return "pandas" in sys.modules, int(table.to_pandas()["a"].sum())


def test_a_worker_makes_tables_without_pandas_and_can_still_ask_for_it() -> None:
    found: list[Any] = []
    with ProcessPool(1) as pool:
        pool.run(make_tables, [0], lambda _, result: found.append(result), what="testing")
    assert found == [(False, 3)]
