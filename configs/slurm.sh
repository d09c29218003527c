#!/bin/bash
# sbatch [--ntasks=32] slurm.sh CONFIG OUT [key=value ...]: a run whose workers are the tasks of this job.
#SBATCH --job-name=layertap
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
# On GPUs, also: #SBATCH --gpus-per-task=1

# The coordinator hands out shards, and commits them.
layertap run "$1" sink.path="$2" 'engine={type: folder, patience: 30}' threads="$SLURM_CPUS_PER_TASK" "${@:3}" &
coordinator=$!

# A step for each worker, so that one which dies takes no other with it. It starts again, until the run is over.
for task in $(seq "$SLURM_NTASKS"); do
    until srun --ntasks=1 --exact --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        layertap work "$2" --wait 600 --workers "$SLURM_CPUS_PER_TASK"; do
        sleep 5
    done &
done

# The end of this script ends the workers too.
wait "$coordinator"
