"""Train from Python: python examples/train.py [FOLDER [STEPS]].

The same run as `sigma train configs/quickstart.yaml out=... steps=...`; started again it goes on where it stopped.
"""

import sys
from pathlib import Path

from pipelines.build_dataset import build_dataset
from pipelines.train import train
from sigma_data import open_corpus


def main(folder: Path, steps: int) -> None:
    """Build a corpus of the drawn world and train the tiny model on it for some steps."""
    corpus = folder / "corpus"
    build_dataset("world:60?size=64", corpus, workers=1)
    print(f"{len(open_corpus(corpus))} samples")
    result = train(
        Path(__file__).parents[1] / "configs" / "quickstart.yaml",
        nproc=1,
        out=str(folder / "run"),
        steps=steps,
        data={"corpora": [{"path": str(corpus)}]},
        validation={"every": 0},  # so few steps are not worth it
    )
    assert result is not None
    print(f"{result['steps']} of {result['of']} steps; checkpoint {result['checkpoint']} in {result['out']}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
