#!/usr/bin/env bash
# Build a corpus on several nodes of a Slurm cluster: sbatch --nodes 4 examples/cluster/build_slurm.sh --config RECIPE --out CORPUS
# Sources and --out (or --work, where --out is a store) lie on a file system that all nodes share.
#SBATCH --job-name sigma-build
#SBATCH --ntasks-per-node 1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode append
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: sbatch --nodes N $0 [options of sigma build-dataset]" >&2; exit 2; }

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS="$first:$((20000 + SLURM_JOB_ID % 20000))" RAY_USAGE_STATS_ENABLED=0
# A token of this job for all nodes: one in ~/.ray/auth_token would be asked for by the head, and not sent by the others.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"

srun --nodes 1 --ntasks 1 --nodelist "$first" --overlap ray start --head --port "${RAY_ADDRESS##*:}" --block &
sleep 20
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes $((SLURM_JOB_NUM_NODES - 1)) --ntasks $((SLURM_JOB_NUM_NODES - 1)) --exclude "$first" --overlap \
    ray start --address "$RAY_ADDRESS" --block &
  sleep 20
fi
sigma build-dataset --engine ray "$@"
