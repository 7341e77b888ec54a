"""Peak memory of a build's workers and parent: python benchmarks/memory.py [--sizes 1000 10000].

Builds `world` corpora of the given sizes, each in a process of its own, and prints the largest
resident size of any worker and of the parent. The first must stay flat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MB = 700


def measure(samples: int, side: int, workers: int) -> None:
    """Build one corpus and print a line of JSON; runs in a process of its own."""
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build
    from pipelines.common.process_pool import peak_memory

    with tempfile.TemporaryDirectory() as folder:
        config = BuildConfig(sources=(f"world:{samples}?size={side}",))
        start = time.perf_counter()
        result = build(config, Path(folder) / "corpus", workers=workers)
        seconds = time.perf_counter() - start
    print(json.dumps({"worker": result.peak_worker_bytes, "parent": peak_memory(), "seconds": seconds}))


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.side, options.workers)
        return
    print(f"{'samples':>8}{'peak of a worker':>20}{'peak of the parent':>22}{'seconds':>10}")
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--side", str(options.side)]
        found = json.loads(
            subprocess.run([*command, "--workers", str(options.workers)], check=True, capture_output=True).stdout
        )
        print(
            f"{size:>8,}{found['worker'] / 1e6:>17,.0f} MB{found['parent'] / 1e6:>19,.0f} MB{found['seconds']:>10.0f}"
        )
        if found["worker"] > LIMIT_MB * 1e6:
            sys.exit(f"a worker took more than {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
