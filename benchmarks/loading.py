"""Peak memory and time of loading weights: python benchmarks/loading.py [--gigabytes 2].

Writes a synthetic bfloat16 checkpoint with the released names, then loads it in a process of its own in bfloat16 and
in float32, by `load_model` and the usual way (`load_file`, then `load_state_dict`). Memory is the growth of the peak
resident size (mapped file pages included) over the resident size before loading. Ours must stay within 1.10 copies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT = 1.10
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"


def write(folder: Path, gigabytes: float) -> None:
    """Write the checkpoint: layers of a 1.5B language model, as many as fill the size, and the tiny vision encoder."""
    import torch

    from sigma_model.checkpoint_io import expected, export_model
    from sigma_model.config import preset
    from sigma_model.model import SigmaModel

    torch.set_num_threads(2)
    tiny = preset("tiny")
    sizes = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "vocab_size": 65_536}
    for layers in range(1, 100):
        language = tiny.language.model_copy(update={**sizes, "num_hidden_layers": layers})
        with torch.device("meta"):
            model = SigmaModel(tiny.model_copy(update={"language": language})).to(torch.bfloat16)
        if 2 * sum(shape.numel() for shape in expected(model).values()) >= 0.95e9 * gigabytes:
            break
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.uniform_(-0.1, 0.1)
    export_model(model, folder)


def load(folder: Path, how: str, dtype_name: str) -> None:
    """Load the checkpoint once and print a line of JSON; runs in a process of its own."""
    import torch
    from safetensors.torch import load_file

    from sigma_model.checkpoint_io import load_model, our_name
    from sigma_model.config import ModelConfig
    from sigma_model.model import SigmaModel

    torch.set_num_threads(2)
    dtype = getattr(torch, dtype_name)
    load_model(GOLDEN, dtype=dtype)  # the first use of torch and of our code takes memory once
    config = ModelConfig.from_directory(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the present size
    before, start = resident("VmRSS"), time.perf_counter()
    if how == "sigma":
        model = load_model(folder, dtype=dtype)
    else:
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        model = SigmaModel(config)
        torch.set_default_dtype(default)
        tensors = load_file(folder / "model.safetensors")
        model.load_state_dict({str(our_name(name)): tensor for name, tensor in tensors.items()})
    seconds = time.perf_counter() - start
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    print(json.dumps({"size": size, "peak": resident("VmHWM") - before, "seconds": seconds}))


def resident(key: str) -> int:
    """A field of this process's status in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """Write, measure each way and type, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes for the time (default: a temporary one)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.gigabytes)
        return
    if options.load:
        load(Path(options.load[0]), *options.load[1:])
        return
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("needs Linux: peak memory is read from /proc")
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run("--write", folder, "--gigabytes", str(options.gigabytes))
        print(f"{'loader':<18}{'type':<10}{'model':>10}{'peak growth':>14}{'ratio':>8}{'seconds':>9}")
        for dtype in ("bfloat16", "float32"):
            for how, name in (("sigma", "sigma"), ("usual", "load_state_dict")):
                found = json.loads(run("--load", folder, how, dtype))
                ratio = found["peak"] / found["size"]
                memory = f"{found['size'] / 1e6:>7,.0f} MB{found['peak'] / 1e6:>11,.0f} MB"
                print(f"{name:<18}{dtype:<10}{memory}{ratio:>8.2f}{found['seconds']:>9.1f}", flush=True)
                worst = max(worst, ratio) if how == "sigma" else worst
    if worst > LIMIT:
        sys.exit(f"load_model took {worst:.2f} copies of the model; at most {LIMIT:.2f} are allowed")


def run(*arguments: Any) -> str:
    """This script in another process; its output."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
