# shellcheck shell=bash
# Sourced by the batch scripts beside it: runs the job's one step, and says what follows from its end.
#
#   the step ended with                        the job
#   0, and the work is done                    ends with 0
#   0, and the work is not done: SIGTERM       queues again: near the time limit Slurm sends SIGTERM to the step alone
#   75: a process of the step was lost         queues again
#   128 or more: a signal ended a process      queues again
#   another code: a mistake in flags or data   ends with that code; trying again would end alike
#
# A job queues again at most MEAN_JAX_MAX_RESTARTS times (20; set it before sbatch). When Slurm itself cancels, preempts
# or requeues the job, this shell gets SIGTERM as well: it only waits until the step has saved its work (Slurm's
# KillWait, 30 s unless configured otherwise, or the partition's GraceTime) and leaves the rest to Slurm.

readonly EXIT_PEER_LOST=75

# Ends the job with a message: give_up CODE MESSAGE
give_up() {
  echo "error: $2; submit the same command again to go on" >&2
  exit "$1"
}

# Puts the job back into the queue and ends this start of it: queue_again CODE_IF_IMPOSSIBLE
queue_again() {
  local restarts=${SLURM_RESTART_COUNT:-0} limit=${MEAN_JAX_MAX_RESTARTS:-20}
  if ((restarts >= limit)); then
    give_up "$1" "job $SLURM_JOB_ID was restarted $restarts times, as often as MEAN_JAX_MAX_RESTARTS allows"
  fi
  echo "job $SLURM_JOB_ID stops before its work is done and queues again (restart $((restarts + 1)) of $limit)" >&2
  scontrol requeue "$SLURM_JOB_ID" || give_up "$1" "job $SLURM_JOB_ID cannot queue again"
  exit 0
}

# Runs a command as the tasks of the allocation and ends the job: run_step MARKER COMMAND [ARGUMENTS]
# MARKER is the file that shows that the work is done, or empty if exit code 0 does.
run_step() {
  local marker=$1 signals=0 seen code step
  shift
  trap 'signals=$((signals + 1))' TERM
  # A step does not inherit the CPUs per task of its job. Processes find each other without MPI. When one of them is
  # lost, the others live on until they have said which one it was.
  srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=none --label --kill-on-bad-exit=0 "$@" &
  step=$!
  while true; do # a signal to this shell ends the waiting, not the step
    seen=$signals code=0
    wait "$step" || code=$?
    if ((signals == seen)); then break; fi
  done
  if ((signals > 0)); then
    exit "$code"
  fi
  if ((code == EXIT_PEER_LOST || code >= 128)); then
    queue_again "$code"
  fi
  if ((code == 0)) && [ -n "$marker" ] && [ ! -f "$marker" ]; then
    queue_again 1
  fi
  exit "$code"
}
