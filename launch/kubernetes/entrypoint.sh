#!/usr/bin/env bash
# Entry point of the image: runs a mean-jax command and hands SIGTERM on to it.
# Process 1 of a container does not get signals that it has no handler for, and Python has none while it starts; this
# shell always has one. Training that was told to stop saves its work and ends with exit code 0, which Kubernetes would
# take for the end of the job: without run.json, the last file of a finished run, the exit code becomes 143. Pod 0, which
# writes that file, speaks for all: on a network file system others may see it later.
set -euo pipefail

marker=
if [ "${1:-}" = mean-jax-train ] && [ "${JOB_COMPLETION_INDEX:-0}" = 0 ]; then
  for argument in "$@"; do
    if [[ $argument == --workdir=* ]]; then marker=${argument#--workdir=}/run.json; fi
  done
fi
signals=0 command=
hand_on() {
  signals=$((signals + 1))
  if [ -n "${!:-}" ]; then
    command=$!
    kill -TERM "$command" 2>/dev/null || true
  fi
}
trap hand_on TERM # before the command starts: it may be told to stop at once
"$@" &
if ((signals > 0)) && [ -z "$command" ]; then kill -TERM $!; fi # the signal came when there was no command yet
command=$!
while true; do # a signal to this shell ends the waiting, not the command
  seen=$signals code=0
  wait "$command" || code=$?
  if ((signals == seen)); then break; fi
done
if ((code == 0)) && [ -n "$marker" ] && [ ! -f "$marker" ]; then
  code=143
fi
exit "$code"
