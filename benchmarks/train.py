"""What training costs beside its arithmetic: python benchmarks/train.py [SECTION ...] [--rounds N].

  wait        the share of a real run's steps (configs/quickstart.yaml) that waits for data
  layout      whole steps, forward, backward and AdamW: tokens sorted by expert and sdpa, against gathering and
              scattering at every step of a layer
  checkpoint  how long a step is held up by an asynchronous save, against one that waits for the disk (in TMPDIR)
  memory      two ranks: what saving adds to the memory of each, beside its shard of the state
  gpu         layers as wide as bagel-7b-mot's on 30K tokens (benchmarks/train_gpu.py); needs CUDA, or --tiny
Arms take turns, round after round; ratios are medians over rounds. The exit code is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import train_gpu
from gathered import SequenceOrder, velocity_error
from model import LANGUAGE
from packs import interleave, sample, speedup
from targets import check
from torch import Tensor

from pipelines.train.checkpoint import Checkpointer
from pipelines.train.config import CheckpointSettings, OptimizerSettings, ParallelSettings
from pipelines.train.distributed.materialize import init_weights_sharded
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import barrier, start_process_group, stop_process_group
from pipelines.train.optimizer import make_optimizer
from sigma_data.loading.batch import PackedBatch
from sigma_model.checkpoint_io import init_model
from sigma_model.config import LanguageConfig, ModelConfig, preset
from sigma_model.model import SigmaModel

ROOT = Path(__file__).parent.parent
WAIT_TARGET = 0.03
LAYOUT_TARGET = 1.10
"""Of whole steps; the experts alone are held to more in benchmarks/model.py."""
STALL_TARGET = 0.05
SYNC_GROWTH, ASYNC_GROWTH = 0.25, 1.25
"""Most that a save may add, in shares of a rank's state: buffers; and one copy of that state. Beside them a copy of
all parameters would be 0.67 more, on two ranks that train with AdamW."""
WARM_UP = 5
"""First steps of a run that are left out: workers start, and the allocator grows."""


def wait(*, steps: int = 40, samples: int = 240) -> bool:
    """Train for real on the embedded corpus; whether steps wait little for data."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _sigma("build-dataset", f"world:{samples}?size=64", "--out", str(folder / "corpus"))
        _sigma(
            "train", str(ROOT / "configs" / "quickstart.yaml"), f"out={folder / 'run'}", f"steps={steps}",
            f"data.corpora=[{{path: {folder / 'corpus'}}}]", "schedule.warmup=0", "validation.every=0",
            "checkpoint.every=0", "log.every=1", "log.tensorboard=false",
        )  # fmt: skip
        lines: list[dict[str, float]] = [
            json.loads(line) for line in filter(None, (folder / "run" / "metrics.jsonl").read_text("utf-8").split("\n"))
        ]
    shares = [line["data_wait"] for line in lines if line.get("data_wait") is not None][WARM_UP:]
    rates = [line["tokens_per_second"] for line in lines if line.get("data_wait") is not None][WARM_UP:]
    mean = statistics.mean(shares)
    print(
        f"wait: quickstart, {len(shares)} steps after the first {WARM_UP}: {mean:.2%} of a step on average, "
        f"{statistics.median(shares):.2%} in the median, {max(shares):.2%} at most; "
        f"{statistics.median(rates):,.0f} tokens/s"
    )
    return check("a quickstart step's wait for data", "", 100 * mean, most=100 * WAIT_TARGET, unit="%")


def layout(config: ModelConfig, batch: PackedBatch, *, rounds: int) -> bool:
    """Time whole training steps of both ways, each on a model of its own with the same weights."""
    arms: dict[str, Callable[[], None]] = {}
    losses: dict[str, list[float]] = {}
    for name, forward in (("ours", _ours), ("gather and scatter", _usual(batch))):
        arms[name] = _stepping(init_model(config, seed=0), batch, forward, losses.setdefault(name, []))
    for arm in arms.values():
        for _ in range(3):
            arm()
    for ours, usual in zip(*losses.values(), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-3, atol=1e-3)
    clocks = interleave(arms, rounds)
    ours, usual = clocks.values()
    ratio = speedup(ours, usual)
    width, layers = config.language.hidden_size, config.language.num_hidden_layers
    print(
        f"layout: {batch.tokens:,} tokens ({batch.n_und:,} understanding, {batch.n_gen:,} generation), "
        f"width {width}, {layers} layers, float32; forward, backward and AdamW; losses of three steps agree"
    )
    for name, clock in clocks.items():
        wall, cpu = (batch.tokens / ms * 1e3 for ms in (clock.wall_ms, clock.cpu_ms))
        print(f"  {name:<22}{clock.wall_ms:>8.0f} ms a step{wall:>9,.0f} tokens/s{cpu:>9,.0f} a CPU second")
    return check("a training step", "gather and scatter, CPU time", ratio, least=LAYOUT_TARGET, unit="times as fast")


Forward = Callable[[SigmaModel, PackedBatch], Tensor]


def _stepping(model: SigmaModel, batch: PackedBatch, forward: Forward, losses: list[float]) -> Callable[[], None]:
    """A step of training; what it loses is noted."""
    optimizer = make_optimizer(model, OptimizerSettings(lr=1e-3))

    def step() -> None:
        loss = forward(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    return step


def _ours(model: SigmaModel, batch: PackedBatch) -> Tensor:
    out = model(batch, model.clean_latents(batch, batch.known_latents))
    loss: Tensor = out.mse.mean() + 0.0 * out.ce.sum()
    return loss


def _usual(batch: PackedBatch) -> Forward:
    order = SequenceOrder(batch, group_mask=True)

    def forward(model: SigmaModel, batch: PackedBatch) -> Tensor:
        """What the model does, with the tokens in the order of their sequences."""
        clean = model.clean_latents(batch, batch.known_latents)
        return velocity_error(model, batch, clean, order=lambda: order).mean()

    return forward


def training_batch(config: ModelConfig, samples: int = 3, side: int = 12) -> PackedBatch:
    """Samples of two references with latents and patches, texts, and a target."""
    segments = sample([((side, side), (7, 7))] * 2, (side, side), words=40)
    return train_gpu.whole_pack(config, [segments] * samples)


def checkpoint(*, megabytes: tuple[int, ...] = (64, 256, 512), rounds: int = 5) -> bool:
    """Time `save` both ways; whether the asynchronous one holds a step up little at the largest size."""
    group = start_process_group(ParallelSettings(), device="cpu")
    print("checkpoint: what one rank waits in `save`; synchronous: written, synced to disk, marked complete")
    print(f"  {'state':>8}{'synchronous':>13}{'asynchronous':>14}{'the first':>11}{'a copy of it':>14}{'share':>8}")
    share = 1.0
    try:
        for size in megabytes:
            with tempfile.TemporaryDirectory() as name:
                tensors = {f"w{n}": torch.randn(2**18) for n in range(size)}  # 1 MiB each
                waits, first = _saves(Path(name), group, {"model": tensors}, rounds)
            copies = {key: torch.zeros_like(value) for key, value in tensors.items()}
            begin = time.perf_counter()
            for key, value in tensors.items():
                copies[key].copy_(value)
            copied = time.perf_counter() - begin
            share = statistics.median(a / s for s, a in zip(*waits.values(), strict=True))
            sync, asynchronous = (statistics.median(times) * 1e3 for times in waits.values())
            print(
                f"  {size:>4} MiB{sync:>10.0f} ms{asynchronous:>11.1f} ms{first * 1e3:>8.0f} ms{copied * 1e3:>11.1f} ms"
                f"{share:>8.1%}"
            )
    finally:
        stop_process_group()
    return check("an asynchronous save", "one that waits", 100 * share, most=100 * STALL_TARGET, unit="%")


def _saves(folder: Path, group: Any, state: Mapping[str, Any], rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds in `save`, by turns: synchronous, asynchronous; and of the first asynchronous one, which takes memory.

    After an asynchronous save its writing is waited for, outside the measured time, as training's steps would.
    """
    arms = {
        name: Checkpointer(folder / name, group, CheckpointSettings(asynchronous=name == "asynchronous", keep=1))
        for name in ("synchronous", "asynchronous")
    }
    waits: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(1, rounds + 2):
        for name, checkpointer in arms.items():
            begin = time.perf_counter()
            checkpointer.save(step, state, {"step": step})
            waits[name].append(time.perf_counter() - begin)
            checkpointer.finish()
    return {name: times[1:] for name, times in waits.items()}, waits["asynchronous"][0]


def memory(language: LanguageConfig) -> bool:
    """Save a sharded model with AdamW's moments on two ranks; whether neither holds more than it must."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if not Path("/proc/self/clear_refs").exists():
        print("memory: skipped, peaks are read from /proc\n")
        return True
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        max_restarts=0, start_method="spawn", run_id="benchmark",
    )  # fmt: skip
    worst = {False: 0.0, True: 0.0}
    with tempfile.TemporaryDirectory() as name:
        print("memory: two ranks; peak while saving over what was resident before, in shares of the rank's own state")
        for asynchronous, limit in ((False, SYNC_GROWTH), (True, ASYNC_GROWTH)):
            folder = Path(name) / str(asynchronous)
            found = elastic_launch(launch, saving_rank)(folder, language.model_dump(), asynchronous)
            for rank, (share, whole, growth) in sorted(found.items()):
                worst[asynchronous] = max(worst[asynchronous], growth / share)
                print(
                    f"  rank {rank}, {'asynchronous' if asynchronous else 'synchronous':<13}"
                    f"{share / 1e6:>7.0f} MB of its own (all parameters are {whole / 1e6:,.0f} MB)"
                    f"{growth / 1e6:>7.0f} MB more{growth / share:>7.2f} shares, limit {limit:.2f}"
                )
    return all([
        check("memory added by saving", "a rank's own state", worst[False], most=SYNC_GROWTH),
        check("memory added by saving asynchronously", "a rank's own state", worst[True], most=ASYNC_GROWTH),
    ])  # fmt: skip


def saving_rank(folder: Path, language: dict[str, Any], asynchronous: bool) -> tuple[int, int, int]:
    """One rank: (bytes of its state, bytes of all parameters, growth of the peak while saving)."""
    torch.set_num_threads(1)
    group = start_process_group(ParallelSettings(), device="cpu", timeout_s=120)
    config = preset("tiny").model_copy(update={"language": LanguageConfig(**language), "vision": None})
    with torch.device("meta"):
        model = SigmaModel(config)
    parallelize(model, group, ParallelSettings(), dtype=torch.float32)
    init_weights_sharded(model, 0, group, dtype=torch.float32)
    parameters: dict[str, Any] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = {
        f"{name}.{moment}": torch.ones_like(parameter)
        for name, parameter in parameters.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    state = {"model": parameters, "optimizer": moments}
    settings = CheckpointSettings(asynchronous=asynchronous)
    small = next(iter(parameters))
    warm = Checkpointer(folder / "warm", group, settings)  # the first use of torch's own code takes memory once
    warm.save(1, {"model": {small: parameters[small]}}, {"step": 1})
    warm.finish()
    checkpointer = Checkpointer(folder / "run", group, settings)
    barrier(group)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the present size
    before = _resident("VmRSS")
    checkpointer.save(1, state, {"step": 1})
    checkpointer.finish()
    growth = _resident("VmHWM") - before
    share = sum(tensor.to_local().nbytes for part in state.values() for tensor in part.values())
    whole = sum(parameter.numel() * 4 for parameter in parameters.values())
    barrier(group)
    stop_process_group()
    return share, whole, growth


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _sigma(*arguments: str) -> None:
    """The command as a user runs it."""
    done = subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"sigma {' '.join(arguments)} failed:\n{done.stderr}")


def main() -> int:
    """Run the sections; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("wait", "layout", "checkpoint", "memory", "gpu")
    parser.add_argument("sections", nargs="*", choices=[[], *sections], default=[], help="default: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="the gpu section at sizes that a CPU bears")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s)\n")
    config = preset("tiny").model_copy(update={"language": LANGUAGE})
    deep = LANGUAGE.model_copy(update={"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2})
    checks: dict[str, Callable[[], bool]] = {
        "wait": wait,
        "layout": lambda: layout(config, training_batch(config), rounds=options.rounds),
        "checkpoint": checkpoint,
        "memory": lambda: memory(deep),
        "gpu": lambda: train_gpu.main(tiny=options.tiny),
    }
    passed = [checks[name]() for name in options.sections or sections]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
