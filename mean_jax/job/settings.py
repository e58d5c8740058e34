"""How many processes a job has, which of them this one is, and where process 0 answers.

Three values make a job, and each may come from several places; the first that gives it wins:

1. the flags `--coordinator_address=HOST:PORT --num_processes=N --process_id=I`;
2. the environment `MEAN_JAX_COORDINATOR_ADDRESS`, `MEAN_JAX_NUM_PROCESSES`, `MEAN_JAX_PROCESS_ID`;
3. the launcher: Open MPI (`OMPI_COMM_WORLD_SIZE`, `OMPI_COMM_WORLD_RANK`; the host from the URI or the name space
   that mpirun hands on) or SLURM within srun (`SLURM_STEP_NUM_TASKS` or `SLURM_NTASKS`, `SLURM_PROCID`,
   `SLURM_STEP_NODELIST` or `SLURM_JOB_NODELIST`, the port from `SLURM_JOB_ID` and `SLURM_STEP_ID`).

On Kubernetes the manifest of an indexed Job (or of a JobSet with one Job) sets `MEAN_JAX_COORDINATOR_ADDRESS` (pod 0
by its stable name under a headless service, such as train-0.train:9911) and `MEAN_JAX_NUM_PROCESSES` (the same number
as `completions` and `parallelism`); the index comes from `JOB_COMPLETION_INDEX`, which Kubernetes sets itself. TPU
pods need no setting, see `distributed.find_tpu_settings`.

`--num_processes=1` says that this process is a job of its own whatever the launcher says. Whatever looks like a job
and is not whole is a UserError: a job never falls apart into processes that each think they are alone.
"""

from collections.abc import Mapping
import dataclasses
import re

from mean_jax.errors import UserError

# Above the range from which Linux draws ports for outgoing connections; SLURM and MPI give jobs numbers, not ports.
_FIRST_PORT, _NUM_PORTS = 61440, 4096
_SLURM_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
_ALONE = "or give --num_processes=1 to run this process alone"


@dataclasses.dataclass(frozen=True)
class JobFlags:
    """The flags as given; None where not."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclasses.dataclass(frozen=True)
class JobSettings:
    """A job of two processes or more.

    Attributes:
      coordinator_address: HOST:PORT on which process 0 awaits the others; an IPv6 host stands in brackets.
      num_processes: of the whole job.
      process_id: of this process, 0 <= process_id < num_processes.
      source: where the settings come from, for log and error lines.
    """

    coordinator_address: str
    num_processes: int
    process_id: int
    source: str

    @property
    def host(self) -> str:
        return self.coordinator_address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator_address.rpartition(":")[2])


def _whole_number(text: str, name: str) -> int:
    if not re.fullmatch(r"\d+", text.strip(), re.ASCII):
        raise UserError(f"{name}={text}: expected a whole number >= 0")
    return int(text)


def _given(environ: Mapping[str, str], *names: str) -> tuple[str, str] | None:
    """Returns (name, value) of the first variable that is set and not empty."""
    return next(((name, environ[name]) for name in names if environ.get(name)), None)


def _require(environ: Mapping[str, str], because: str, *names: str) -> tuple[str, str]:
    found = _given(environ, *names)
    if found is None:
        raise UserError(f"{because}, but {' or '.join(names)} is not set; start every process with the same launcher")
    return found


def _check(address: tuple[str, str], count: tuple[str, int], process: tuple[str, int], source: str) -> JobSettings:
    """Returns the settings from (name, value) of each, or raises UserError naming the one that is wrong."""
    host, colon, port = address[1].rpartition(":")
    is_port = re.fullmatch(r"\d{1,5}", port, re.ASCII) and 0 < int(port) < 1 << 16
    if not colon or not host or "/" in host or (":" in host and not host.startswith("[")) or not is_port:
        raise UserError(f"{address[0]}={address[1]}: expected HOST:PORT of process 0, such as node1:9911")
    if process[1] >= count[1]:
        raise UserError(
            f"{process[0]}={process[1]}: there are {count[0]}={count[1]} processes, numbered from 0 to {count[1] - 1}"
        )
    return JobSettings(address[1], count[1], process[1], source)


def first_host(nodes: str) -> str:
    """Returns the first host of a SLURM node list such as `gpu[007-010,12],login` (-> gpu007)."""
    first = re.split(r",(?![^\[]*\])", nodes.strip())[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _from_slurm(environ: Mapping[str, str]) -> JobSettings | None:
    is_step = _given(environ, *_SLURM_STEP) is not None or environ.get("SLURM_PROCID", "0") != "0"
    if not is_step:
        return None
    because = "SLURM started this process"
    count_name, count = _require(environ, because, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    num_processes = _whole_number(count, count_name)
    if num_processes == 1:
        return None
    because = f"{count_name}={count}"
    process_name, process = _require(environ, because, "SLURM_PROCID")
    nodes_name, nodes = _require(environ, because, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    job_name, job_id = _require(environ, because, "SLURM_JOB_ID", "SLURM_JOBID")
    job = _whole_number(job_id, job_name)
    step = _whole_number(environ.get("SLURM_STEP_ID") or "0", "SLURM_STEP_ID")
    port = _FIRST_PORT + (job + 97 * step) % _NUM_PORTS  # two steps of a job may run at once
    return _check(
        (nodes_name, f"{first_host(nodes)}:{port}"),
        (count_name, num_processes),
        (process_name, _whole_number(process, process_name)),
        "SLURM",
    )


def _open_mpi_address(environ: Mapping[str, str]) -> str:
    """Returns where process 0 answers: on the host of mpirun, which is where Open MPI places it by default."""
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")  # version 4: JOB.0;tcp://IP,IP:PORT or tcp6://[IP,IP]:PORT
    named = re.fullmatch(r"prte(?:run)?-(.+)-(\d+)@\d+", environ.get("PMIX_NAMESPACE", ""))  # version 5: host and pid
    launcher = re.match(r"(\d+)\.", uri)
    number = int(launcher[1]) >> 12 if launcher else int(named[2]) if named else 0  # the job's is a multiple of 2^12
    port = _FIRST_PORT + number % _NUM_PORTS
    if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ["OMPI_COMM_WORLD_SIZE"]:
        return f"127.0.0.1:{port}"
    if found := re.search(r"tcp://([^,:;]+)", uri):
        return f"{found[1]}:{port}"
    if found := re.search(r"tcp6://\[([^,\]]+)", uri):
        return f"[{found[1]}]:{port}"
    if named:
        return f"{named[1]}:{port}"
    raise UserError(
        "OMPI_COMM_WORLD_SIZE: mpirun does not say on which host process 0 runs; "
        "add -x MEAN_JAX_COORDINATOR_ADDRESS=HOST:PORT to mpirun"
    )


def _from_open_mpi(environ: Mapping[str, str], address: tuple[str, str] | None) -> JobSettings | None:
    if not _given(environ, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        return None
    because = "Open MPI started this process"
    count_name, count = _require(environ, because, "OMPI_COMM_WORLD_SIZE")
    num_processes = _whole_number(count, count_name)
    if num_processes == 1:
        return None
    process_name, process = _require(environ, because, "OMPI_COMM_WORLD_RANK")
    return _check(
        address or ("OMPI_MCA_orte_hnp_uri", _open_mpi_address(environ)),
        (count_name, num_processes),
        (process_name, _whole_number(process, process_name)),
        "Open MPI",
    )


def _refuse_half_a_job(environ: Mapping[str, str]) -> None:
    """Raises UserError if the environment is of a job, but this process was not started as one of it."""
    for name in ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_JOB_NUM_NODES"):
        found = _given(environ, name)
        if found and not _given(environ, *_SLURM_STEP) and _whole_number(found[1], name) > 1:
            raise UserError(
                f"{name}={found[1]}, but srun did not start this process: put srun before the command, {_ALONE}"
            )
    found = _given(environ, "PMI_SIZE")
    if found and not _given(environ, *_SLURM_STEP) and _whole_number(found[1], "PMI_SIZE") > 1:
        raise UserError(
            f"PMI_SIZE={found[1]}: this launcher does not say where process 0 runs; "
            f"give --coordinator_address, --num_processes and --process_id, {_ALONE}"
        )
    on_tpu = _given(environ, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    if _given(environ, "JOB_COMPLETION_INDEX") and not on_tpu:
        raise UserError(
            "JOB_COMPLETION_INDEX is set (an indexed Job of Kubernetes), but MEAN_JAX_NUM_PROCESSES is not; set it "
            "and MEAN_JAX_COORDINATOR_ADDRESS in the manifest, or MEAN_JAX_NUM_PROCESSES=1 if each pod is on its own"
        )


def _pick(flag: object, name: str, environ: Mapping[str, str], *variables: str) -> tuple[str, str] | None:
    """Returns (its name, value) of a setting from the flag, else from the environment."""
    return (f"--{name}", str(flag)) if flag is not None else _given(environ, *variables)


def find_settings(flags: JobFlags, environ: Mapping[str, str]) -> JobSettings | None:
    """Returns the settings of the job that this process belongs to, None if it is alone.

    Args:
      flags: what was given on the command line.
      environ: the environment; nothing else is looked at.

    Raises:
      UserError: settings that are partial, not numbers, out of range, or contradict the launcher's.
    """
    address = _pick(flags.coordinator_address, "coordinator_address", environ, "MEAN_JAX_COORDINATOR_ADDRESS")
    count = _pick(flags.num_processes, "num_processes", environ, "MEAN_JAX_NUM_PROCESSES")
    process = _pick(flags.process_id, "process_id", environ, "MEAN_JAX_PROCESS_ID")
    if count is not None:
        num_processes = _whole_number(count[1], count[0])
        if num_processes == 0:
            raise UserError(f"{count[0]}=0: expected at least 1 process")
        if num_processes == 1:
            if process is not None and _whole_number(process[1], process[0]) > 0:
                raise UserError(f"{process[0]}={process[1]}: of {count[0]}=1 process there is number 0 alone")
            return None
    launcher = _from_open_mpi(environ, address) or _from_slurm(environ)
    if address is None and count is None and process is None:
        if launcher is None:
            _refuse_half_a_job(environ)
        return launcher
    return _merge(address, count, process, launcher, environ)


def _merge(
    address: tuple[str, str] | None,
    count: tuple[str, str] | None,
    process: tuple[str, str] | None,
    launcher: JobSettings | None,
    environ: Mapping[str, str],
) -> JobSettings:
    """Returns what was given, completed from the launcher."""
    if process is None and launcher is None:
        process = _given(environ, "JOB_COMPLETION_INDEX")
    if launcher is not None:
        address = address or (launcher.source, launcher.coordinator_address)
        count = count or (launcher.source, str(launcher.num_processes))
        process = process or (launcher.source, str(launcher.process_id))
    named = {"coordinator_address": address, "num_processes": count, "process_id": process}
    if address is None or count is None or process is None:
        have = next(item[0] for item in named.values() if item is not None)
        lacks = " and ".join(f"--{name} (or MEAN_JAX_{name.upper()})" for name, item in named.items() if item is None)
        raise UserError(f"{have} is given, but not {lacks}; a job of several processes needs all three")
    source = "flags" if any(item[0].startswith("--") for item in (address, count, process)) else "MEAN_JAX_*"
    settings = _check(
        address,
        (count[0], _whole_number(count[1], count[0])),
        (process[0], _whole_number(process[1], process[0])),
        source,
    )
    for name, given in (("num_processes", count), ("process_id", process)):
        if launcher is not None and getattr(settings, name) != getattr(launcher, name):
            raise UserError(
                f"{given[0]}={given[1]} contradicts {launcher.source}, which says {getattr(launcher, name)}; "
                f"leave {given[0]} away"
            )
    return settings
