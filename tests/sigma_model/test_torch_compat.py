"""Each private name of torch that we use is there and does what we use it for: a failure says which one broke."""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sigma_data.images.torch_compat import resize_into
from sigma_model.torch_compat import CHECKPOINT_RECORDS, lerp_all, local_shape_and_offset, sharded_like


@pytest.fixture
def sharded() -> Iterator[DTensor]:
    """A tensor [4, 3] sharded by rows over a mesh of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield distribute_tensor(torch.arange(12.0).view(4, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
    dist.destroy_process_group()


def test_torch_foreach_lerp() -> None:
    averages = [torch.zeros(2), torch.ones(3)]
    lerp_all(averages, [torch.ones(2), torch.zeros(3)], 0.25)
    assert [average.tolist() for average in averages] == [[0.25] * 2, [0.75] * 3]


def test_dtensor_spec(sharded: DTensor) -> None:
    other = sharded_like(torch.zeros(4, 3), sharded)
    assert (other.placements, other.shape, other.to_local().sum()) == (sharded.placements, sharded.shape, 0)


def test_tensor_utils_compute_local_shape_and_global_offset(sharded: DTensor) -> None:
    assert [list(found) for found in local_shape_and_offset(sharded)] == [[4, 3], [0, 0]]


@pytest.mark.parametrize(("module", "name"), CHECKPOINT_RECORDS)
def test_private_record_of_checkpoints_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_checkpoints_refer_to_no_other_private_names(tmp_path: Path, sharded: DTensor) -> None:
    wanted = set()

    class Recording(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            wanted.add((module, name))
            return super().find_class(module, name)

    save({"a": sharded, "b": torch.zeros(2)}, storage_writer=FileSystemWriter(tmp_path))
    Recording(io.BytesIO((tmp_path / ".metadata").read_bytes())).load()
    assert {found for found in wanted if found[1].startswith("_")} <= set(CHECKPOINT_RECORDS)


def test_aten_upsample_bicubic2d_aa() -> None:
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    out = torch.empty(1, 1, 4, 4, dtype=torch.uint8)
    resize_into(pixels, out, scale_h=0.5, scale_w=0.5)
    expected = torch.nn.functional.interpolate(pixels.float(), size=(4, 4), mode="bicubic", antialias=True)
    assert (out.float() - expected).abs().max() <= 1
