#!/usr/bin/env bash
# pyarrow 26.0.1: iter_batches keeps every row group that it has left behind, until the file is closed (pre_buffer).
#
# Guess before the first run: iterating a file of 40 row groups of 5 MB in batches, each dropped before the next is taken,
# needs memory for one or two row groups: 5 to 20 MB.
# Seen: with ParquetFile's defaults (pre_buffer=True) memory grows with every row group to the size of the whole file, over
# 190 MB; with pre_buffer=False it stays at a few row groups. The rows are the same.
# Why it matters: iter_batches is what is used to stream files that do not fit into memory; a file of images or a large
# manifest is then held whole, and nothing says so. Files read in order lose nothing by pre_buffer=False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1

cat > "$work/read.py" <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq


def megabytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


options = {} if sys.argv[2] == "default" else {"pre_buffer": False}
before, digest = megabytes(), hashlib.sha256()
with pq.ParquetFile(sys.argv[1], **options) as file:
    for batch in file.iter_batches(batch_size=10, use_threads=False):
        for value in batch.column(0):
            digest.update(value.as_buffer())
        del batch, value
print(digest.hexdigest(), megabytes() - before)
PYTHON

cat > "$work/check.py" <<'PYTHON'
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

schema = pa.schema([("data", pa.binary())])
with pq.ParquetWriter("images.parquet", schema, compression="none", use_dictionary=False) as writer:
    for group in range(40):
        values = [random.Random(10 * group + number).randbytes(500_000) for number in range(10)]
        writer.write_table(pa.table({"data": pa.array(values, pa.binary())}))


def read(how):
    command = [sys.executable, "read.py", "images.parquet", how]
    digest, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return digest, int(grown)


(digest, default), (same, lean) = read("default"), read("pre_buffer=False")
assert digest == same
print(f"pyarrow {pa.__version__}: 40 row groups of 5 MB; the process grows by {default} MB, with pre_buffer=False by {lean} MB")
assert default > 150, "the behaviour has changed: row groups are let go"
assert lean < 100, "pre_buffer=False keeps them, too"
PYTHON
(cd "$work" && "$work/venv/bin/python" check.py)
