#!/usr/bin/env bash
# datasets 5.2.0: the state of a shuffled stream names its epoch, and loading it in another epoch starts from the top.
#
# Guess before the first run: state_dict() of an IterableDataset holds {"epoch": 1, ...}, so load_state_dict() on a
# freshly made stream goes on in epoch 1 behind the samples that were read.
# Seen: nothing is raised or warned; the fresh stream is in epoch 0, the state is of epoch 1, and so the whole of epoch 0
# is yielded from its first sample, in another order: those read before come again. After set_epoch(1) the same state
# goes on where it was taken.
# Why it matters: a training that saves the stream's state, as the documentation shows, and is killed in its second epoch
# trains again on what it has seen, unless it stores the epoch beside the state and sets it first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0

cat > "$work/check.py" <<'PYTHON'
import itertools

import datasets


def rows(shards):
    for shard in shards:
        for number in range(4):
            yield {"id": 10 * shard + number}


def stream(epoch=None):
    made = datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(6))})
    made = made.shuffle(seed=3, buffer_size=1)
    if epoch is not None:
        made.set_epoch(epoch)
    return made


def ids(made):
    return [row["id"] for row in made]


whole = ids(stream(epoch=1))
begun = stream(epoch=1)
read = ids(itertools.islice(begun, 6))
state = begun.state_dict()
assert state["epoch"] == 1

resumed = stream()
resumed.load_state_dict(state)
rest = ids(resumed)

prepared = stream(epoch=1)
prepared.load_state_dict(state)
rest_prepared = ids(prepared)

again = len(set(read) & set(rest))
print(f"datasets {datasets.__version__}: {len(whole)} samples an epoch, {len(read)} read before the state was taken")
print(f"load_state_dict:                {len(rest)} follow, {again} of those read come again")
print(f"set_epoch(1), load_state_dict:  {len(rest_prepared)} follow, {len(set(read) & set(rest_prepared))} come again")
assert read + rest_prepared == whole, "setting the epoch first no longer continues"
assert rest == ids(stream()), "the behaviour has changed: loading a state of another epoch does not start from the top"
PYTHON
(cd "$work" && HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py)
