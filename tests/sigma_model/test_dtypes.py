"""Names of dtypes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.places import ROOT

from sigma_model.dtypes import DType


def test_a_dtype_is_torchs_of_the_same_name() -> None:
    assert DType("float32").torch is torch.float32 and DType("bfloat16").torch is torch.bfloat16


def test_auto_must_be_decided_first() -> None:
    with pytest.raises(ValueError, match="auto"):
        _ = DType.AUTO.torch


def test_the_names_need_no_torch() -> None:
    program = "import sys, sigma_model.dtypes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
