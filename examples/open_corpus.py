"""Open a corpus from Python, look at samples, hand it to HF `datasets`: python examples/open_corpus.py [FOLDER]."""

import sys
from pathlib import Path

from pipelines.build_dataset import build_dataset
from sigma_data import open_corpus


def main(folder: Path) -> None:
    """Build a small corpus of the drawn world and read it in three ways."""
    build_dataset("world:60?size=64", folder / "corpus", workers=1)

    corpus = open_corpus(folder / "corpus")
    sample = corpus[0]
    print(f"{len(corpus)} samples; the first teaches {sample.family}:")
    for turn in sample.turns:
        print(f"  {turn.instruction} -> image {turn.target}")
    print(f"  references {sample.references}, {len(sample.images[0].data or b'')} bytes in the first")

    # The manifest is a polars table: a row a sample, with the byte range of every image.
    print(corpus.manifest.group_by("family", "split").len().sort("family", "split"))

    # A split as an HF data set; streaming reads the shards where they lie.
    train = corpus.to_datasets(split="train", streaming=True)
    row = next(iter(train))
    print(row["family"], row["roles"], [image.size for image in row["images"]])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"))
