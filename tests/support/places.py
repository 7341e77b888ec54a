"""Where the checkout's files lie, for tests at any depth."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
CONFIGS = ROOT / "configs"
BENCHMARKS = ROOT / "benchmarks"
