#!/usr/bin/env bash
# pyarrow 26.0.1: data_page_size does not bound a page of large values; a column of 200 images of 1 MB is one page.
#
# Guess before the first run: with data_page_size=1 MiB (the default) a column of 1 MB values has about a page each, so
# reading it row by row with a small buffer takes a few megabytes.
# Seen: the writer looks at the page's size after every write_batch_size values only (1,024 by default), so all 200
# stand in one page, and a reader that takes one row at a time must hold the page: over 200 MB, with
# write_batch_size=1 a few.
# Why it matters: data sets of encoded images are written so by default; who streams them needs memory for a page.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1

cat > "$work/read.py" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

with open(sys.argv[1], "rb") as stream:
    file = pq.ParquetFile(stream, buffer_size=2**20)
    rows = sum(batch.num_rows for batch in file.iter_batches(1, use_threads=False))
assert rows == 200
print(pa.default_memory_pool().max_memory() // 2**20)
PYTHON

cat > "$work/check.py" <<'PYTHON'
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

images = pa.table({"image": pa.array([os.urandom(2**20) for _ in range(200)], pa.binary())})
grown = {}
for name, options in {"default": {}, "write_batch_size=1": {"write_batch_size": 1}}.items():
    pq.write_table(images, "images.parquet", compression="none", use_dictionary=False, data_page_size=2**20, **options)
    told = subprocess.run([sys.executable, "read.py", "images.parquet"], check=True, capture_output=True, text=True)
    grown[name] = int(told.stdout)
    print(f"written with {name:<18} read a row at a time: Arrow holds {grown[name]:>4} MB at most")
assert grown["write_batch_size=1"] < 50, "streaming pages of one value takes more than it did"
assert grown["default"] > 150, "the behaviour has changed: large values no longer share a page"
PYTHON
(cd "$work" && "$work/venv/bin/python" check.py)
