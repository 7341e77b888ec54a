"""Read a layout of your own: python examples/add_source.py [FOLDER].

A source is a class that lists its fragments and reads the records of one. Checks, deduplication, splits, quarantine
and resuming then work as for every other source.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image as Pillow

from pipelines.build_dataset import build_dataset
from sigma_data import Family, Image, Sample, Source, Turn
from sigma_data.errors import SourceError
from sigma_data.sample import Rejection, sample_id
from sigma_data.sources import Fragment, Reader, register


class EditPairs(Reader):
    """`edit_pairs:FOLDER`: JSON lines with `before`, `after` (image files) and `text`."""

    def fragments(self) -> list[Fragment]:
        """A fragment a file, in a fixed order; the stamp changes when the file does."""
        files = sorted(Path(self.path).glob("*.jsonl"))
        if not files:
            raise SourceError(f"{self.path}: holds no .jsonl file")
        return [Fragment(file.name, stamp=f"{file.stat().st_size} {file.stat().st_mtime_ns}") for file in files]

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        """A record a line; what cannot be read is a Rejection, never an exception."""
        folder = Path(self.path)
        for row, line in enumerate((folder / fragment.location).read_text("utf-8").splitlines()):
            try:
                record = json.loads(line)
                before, after = ((folder / record[name]).read_bytes() for name in ("before", "after"))
                text = f"{record['text']} <image_1>"
            except (ValueError, KeyError, TypeError, OSError) as error:
                yield Rejection(self.name, fragment.location, row, "bad_record", str(error))
                continue
            yield Sample(
                id=sample_id(self.name, fragment.location, row),
                family=Family.EDITING,
                images=(Image(1, before), Image(2, after)),
                turns=(Turn(text, target=2),),
                source=Source(self.name, fragment.location, row),
            )


register("edit_pairs", EditPairs)  # at the top of the module: worker processes import it, too


def main(folder: Path) -> None:
    """Write three pairs, one of them broken, and build a corpus of them."""
    data = folder / "pairs"
    data.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (before, after) in enumerate([("red", "blue"), ("green", "orange"), ("gray", "purple")]):
        for name, color in (("before", before), ("after", after)):
            gradient = Pillow.linear_gradient("L").resize((96, 64)).rotate(40 * number)
            Pillow.composite(Pillow.new("RGB", (96, 64), color), Pillow.new("RGB", (96, 64), "white"), gradient).save(
                data / f"{number}-{name}.png"
            )
        lines.append({"before": f"{number}-before.png", "after": f"{number}-after.png", "text": f"Make it {after}:"})
    lines[2]["after"] = "not-there.png"
    (data / "pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    corpus = build_dataset(f"edit_pairs:{data}", folder / "edits", workers=1, overwrite=True, splits={"train": 1.0})
    print({name: corpus.sums[name] for name in ("read", "written", "quarantined", "duplicates")})
    print(corpus.quarantine.select("row", "code", "message"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"))
