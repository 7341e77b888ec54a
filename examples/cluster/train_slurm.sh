#!/usr/bin/env bash
# Train on several nodes of a Slurm cluster: sbatch --nodes 4 --gpus-per-node 8 examples/cluster/train_slurm.sh CONFIG out=RUN
# A node that is lost ends the job; --requeue starts it again, and the run goes on from its last checkpoint.
#SBATCH --job-name sigma-train
#SBATCH --ntasks-per-node 1
#SBATCH --requeue
#SBATCH --open-mode append
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: sbatch --nodes N --gpus-per-node G $0 CONFIG [name=value ...]" >&2; exit 2; }

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))                     # two jobs on a node do not meet
per_node=${SLURM_GPUS_ON_NODE:-1}

# Slurm numbers its tasks, too; sigma starts the processes of a node itself, so it is told how many.
exec srun --kill-on-bad-exit 1 sigma train "$@" \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc "$per_node" --rdzv "$first:$port"
