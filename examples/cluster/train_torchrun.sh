#!/usr/bin/env bash
# Train under torchrun, the same command on each machine: FIRST=node1:29400 NODES=2 examples/cluster/train_torchrun.sh CONFIG out=RUN
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: FIRST=HOST:PORT NODES=N [GPUS=G] $0 CONFIG [name=value ...]" >&2; exit 2; }

# torchrun has numbered the processes, so neither --nproc nor --nnodes is given to sigma.
exec torchrun --nnodes "${NODES:?how many machines}" --nproc-per-node "${GPUS:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "${FIRST:?HOST:PORT of the first machine}" --rdzv-id sigma \
  --max-restarts 3 --no-python sigma train "$@"
