"""Several processes in one job: how they start together, who speaks, and how they end.

The same program runs as one process and as many. In one, nothing here opens a connection, `is_lead()` holds and
`barrier` returns at once. In a job of several, `initialize` calls the roll on the control channel and starts JAX:

- all come within the connect timeout, or the job ends with one error line that names those missing (exit code 2);
- a process that is killed, stopped or cut off ends all others within the peer timeout; each says which process was
  lost, on which host and with which pid, and how to go on (exit code 75);
- a user's mistake in any process ends the job with exit code 2 and one `error:` line, which process 0 prints; a
  defect ends it with 1 and the traceback of the process that had it; a signal with 128 and the signal's number;
- at the normal end the processes wait for each other and part.

Where a job's settings come from (flags, MEAN_JAX_COORDINATOR_ADDRESS, MEAN_JAX_NUM_PROCESSES, MEAN_JAX_PROCESS_ID,
JOB_COMPLETION_INDEX of Kubernetes, SLURM, Open MPI) stands in `mean_jax.job.settings`. Process 0 listens on the port of
the coordinator address, JAX's service and its collectives on ports that are free at the time; all must reach them.

JAX itself ends a process by abort() as soon as it misses another one. So its own timeouts are longer than ours, and
its abort is held back for a moment in which the channel says what happened.

Devices: a process uses all accelerators that it sees. Where several processes share a machine, its launcher shows
each one its own (srun --gpus-per-task=1, CUDA_VISIBLE_DEVICES), or JAX_LOCAL_DEVICE_IDS names them.
"""

import ctypes
import importlib.util
import itertools
import os
import re
import signal
import sys
import time
from typing import NoReturn

from mean_jax import log
from mean_jax.errors import UserError
from mean_jax.job.channel import EXIT_PEER_LOST, EXIT_USER_ERROR, Channel, Note
from mean_jax.job.hub import Hub
from mean_jax.job.member import Member
from mean_jax.job.settings import JobFlags, JobSettings, find_settings
from mean_jax.log import LOGGER

__all__ = [
    "EXIT_PEER_LOST",
    "EXIT_USER_ERROR",
    "JobFlags",
    "JobSettings",
    "await_verdict",
    "barrier",
    "end",
    "find_settings",
    "find_tpu_settings",
    "initialize",
    "is_joined",
    "is_lead",
    "leave",
    "num_processes",
]

PEER_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 300.0
# JAX must not notice a loss by itself before we do.
_JAX_TIMEOUT_FACTOR, _JAX_MARGIN_S = 2, 60
# What the libraries say when the other end of a collective is gone (Gloo on CPU, NCCL on GPU, gRPC between hosts).
_BROKEN_COLLECTIVE = re.compile(
    r"(?i:gloo|nccl|connection (closed|reset)|socket closed|broken pipe|coordination service)|"
    "UNAVAILABLE|DEADLINE_EXCEEDED"
)

_MAX_TEXT = 4000  # characters of a reason; a longer message would not pass the channel

_channel: Channel | None = None
_barrier_numbers = itertools.count()


def is_joined() -> bool:
    """Tells whether this process is one of several."""
    return _channel is not None


def is_lead() -> bool:
    """Tells whether this is process 0, which alone writes shared files and speaks for the job."""
    return _channel is None or _channel.settings.process_id == 0


def num_processes() -> int:
    """Returns how many processes the job has."""
    return 1 if _channel is None else _channel.settings.num_processes


def barrier(name: str, timeout: float | None = None) -> None:
    """Waits until every process is here; all call their barriers in the same order.

    Args:
      name: what the processes wait for, for error lines.
      timeout: seconds; without one only the loss of a process ends the waiting.

    Raises:
      UserError: a process did not come in time.
    """
    if _channel is not None:
        _channel.barrier(f"{name} ({next(_barrier_numbers)})", timeout)


def find_tpu_settings(timeout: float = CONNECT_TIMEOUT_S) -> JobSettings | None:
    """Returns what JAX's own discovery says about the hosts of a TPU pod, None elsewhere and on a single host.

    Args:
      timeout: seconds to wait until the name of process 0 is known.
    """
    if importlib.util.find_spec("libtpu") is None:
        return None
    from jax._src import clusters

    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present():
            count = cluster.get_process_count()
            if count > 1:
                address = cluster.get_coordinator_address(round(timeout), None)
                return JobSettings(address, count, cluster.get_process_id(), "the TPU pod")
    return None


def initialize(
    settings: JobSettings | None, peer_timeout: float = PEER_TIMEOUT_S, connect_timeout: float = CONNECT_TIMEOUT_S
) -> None:
    """Joins the job before any use of a device; does nothing for a single process.

    Args:
      settings: of the job, None for a single process.
      peer_timeout: seconds without a sign of life after which a process counts as lost.
      connect_timeout: seconds within which all processes must have come.

    Raises:
      UserError: not all processes came, or one does not belong to the job; the line names them.
    """
    global _channel
    if settings is None:
        return
    if _channel is not None:
        raise RuntimeError("initialize() was called before in this process")
    end_of = Hub if settings.process_id == 0 else Member
    _channel = channel = end_of(settings, peer_timeout, _end_process)
    channel.join(connect_timeout)
    num_hosts = len({peer.host for peer in channel.peers.values()})
    if is_lead():
        hosts = f"{num_hosts} host{'s' if num_hosts > 1 else ''}"
        LOGGER.info("%d processes on %s (from %s)", settings.num_processes, hosts, settings.source)
    else:
        log.quieten()
    import jax

    # Its handler would replace ours for SIGTERM; the processes agree on when to stop by themselves.
    jax.config.update("jax_enable_preemption_service", False)
    if not is_lead():
        _hold_back_abort()
    is_loopback = settings.host in ("localhost", "::1") or settings.host.startswith("127.")
    jax.distributed.initialize(
        channel.jax_address,
        settings.num_processes,
        settings.process_id,
        cluster_detection_method="deactivate",  # all is said; nothing is left to be guessed
        initialization_timeout=round(connect_timeout),
        heartbeat_timeout_seconds=round(_JAX_TIMEOUT_FACTOR * peer_timeout) + _JAX_MARGIN_S,
        coordinator_bind_address=channel.jax_address if is_loopback else None,
    )


def leave() -> None:
    """Parts from the other processes at the normal end of the job, once all of them have come to it."""
    global _channel
    if _channel is None:
        return
    import jax

    barrier("the end of the job")
    _channel.leave()
    jax.distributed.shutdown()
    _channel.close()
    _channel = None


def end(kind: str, exit_code: int, text: str) -> None:
    """Ends this process and the whole job before its work is done; returns only if the process is alone.

    Args:
      kind: "error" for a user's mistake, "failed" for a defect, "stopped" for a signal.
      exit_code: of all processes.
      text: one line that says why.
    """
    if _channel is not None:
        _channel.end(Note(_channel.settings.process_id, kind, exit_code, text[:_MAX_TEXT]))


def await_verdict(error: BaseException) -> None:
    """If the error is that of a collective whose other end is gone, waits until the channel has said who was lost.

    Returns if it is another error, or if nobody was lost within the peer timeout. A loss ends the process.
    """
    if _channel is None:
        return
    cause: BaseException | None = error
    while cause is not None and not (
        not isinstance(cause, UserError) and _BROKEN_COLLECTIVE.search(f"{type(cause).__name__}: {cause}")
    ):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        time.sleep(_channel.peer_timeout)


def _end_process(note: Note, is_said: bool) -> NoReturn:
    """Says why the job ends, if process 0 has not said it, and ends at once, whatever the main thread waits for.

    Everyone names a lost process, as each may be the only one whose output is looked at. A defect has shown its
    traceback already.
    """
    is_own = _channel is not None and note.process == _channel.settings.process_id
    if note.kind == "lost" or not (is_said or (note.kind == "failed" and is_own)):
        print(note.text if note.kind == "stopped" else f"error: {note.text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(note.exit_code)


def _hold_back_abort() -> None:
    """Lets abort() wait some seconds before it ends the process.

    JAX's client aborts the moment its connection to process 0 breaks, without asking anyone. The handler is C's
    sleep(), which takes the number of the signal (6) as its seconds and needs neither Python nor memory; the channel,
    which sees the same loss, meanwhile names it and ends the process. An abort for another reason only comes later.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
