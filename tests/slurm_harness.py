"""A Slurm cluster of one node on the loopback interface, for tests: munged, slurmctld and slurmd in a folder.

The daemons run as the user who starts them, know nothing of a Slurm that the machine may have, and end with the `with`
block. Control groups, systemd and accounting are not needed.
"""

from collections.abc import Callable
import contextlib
import getpass
import os
from pathlib import Path
import shutil
import socket
import subprocess
import tempfile
import time

_DAEMONS = ("munged", "slurmctld", "slurmd")
_COMMANDS = ("sbatch", "srun", "scontrol", "scancel", "squeue")
# Debian keeps daemons where only root looks for programs.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_UNFINISHED = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
# cred_expire is also how long a requeued job must wait before it starts again: 120 s unless told, 5 s at least.
_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg={true}
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=localhost NodeAddr=127.0.0.1 CPUs={num_cpus} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES State=UP
"""


def _path_of(program: str) -> str | None:
    return shutil.which(program, path=_SEARCH_PATH)


def missing_programs() -> list[str]:
    """Returns the programs of Slurm and MUNGE that are not installed."""
    return [program for program in (*_DAEMONS, *_COMMANDS) if _path_of(program) is None]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def _wait_until(is_true: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class SlurmCluster:
    """The running cluster; use it in a `with` block.

    Args:
      num_cpus: of its node; more than the machine has let as many jobs run side by side.
    """

    def __init__(self, num_cpus: int = 2) -> None:
        self._num_cpus = num_cpus
        # A short path of its own: that of a socket has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="slurm_"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self._environ |= {"SLURM_CONF": str(self._folder / "slurm.conf"), "PATH": _SEARCH_PATH}

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        folder = self._folder
        folder.chmod(0o755)  # MUNGE wants every user to reach its socket
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(64))
        controller_port, node_port = _free_ports(2)
        config = _CONFIG.format(
            folder=folder,
            user=getpass.getuser(),
            controller_port=controller_port,
            node_port=node_port,
            num_cpus=self._num_cpus,
            true=_path_of("true"),
        )
        (folder / "slurm.conf").write_text(config)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        self._spawn("munged", "--foreground", "--force", *(f"--{flag}={folder / name}" for flag, name in files.items()))
        self._check(_wait_until((folder / "munge.socket").exists, 10.0))
        self._spawn("slurmctld", "-D", "-i")
        self._spawn("slurmd", "-D", "-N", "localhost")
        self._check(_wait_until(self._is_idle, 30.0))

    def _is_idle(self) -> bool:
        return "State=IDLE " in self.call("scontrol", "show", "node", "localhost", "--oneliner", check=False)

    def _spawn(self, program: str, *arguments: str) -> None:
        with open(self._folder / f"{program}.out", "wb") as output:
            command = [_path_of(program) or program, *arguments]
            self._daemons.append(subprocess.Popen(command, env=self._environ, stdout=output, stderr=output))

    def _check(self, has_started: bool) -> None:
        if not has_started:
            files = [*sorted(self._folder.glob("*.out")), *sorted(self._folder.glob("*.log"))]
            text = "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)
            raise RuntimeError(f"the test cluster did not start\n{text}")

    def _stop(self) -> None:
        if len(self._daemons) == len(_DAEMONS):
            # Steps would outlive the daemons. Slurm kills after 30 s (KillWait) what does not end by itself.
            self.call("scancel", "--user", getpass.getuser(), check=False)
            _wait_until(lambda: not self.call("squeue", "--noheader", check=False), 45.0)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(
        self, *command: str, check: bool = True, environ: dict[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Returns the standard output of a Slurm command, without the last newline."""
        environ = self._environ | (environ or {})
        result = subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=30)
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
        return result.stdout.strip()

    def submit(self, folder: Path, *arguments: object, environ: dict[str, str] | None = None) -> str:
        """Submits a job from a folder, where its output goes as `JOB.log`; returns the job's number."""
        command = ["sbatch", "--parsable", "--output=%j.log", *map(str, arguments)]
        return self.call(*command, environ=environ, cwd=folder)

    def describe(self, job: str) -> dict[str, str]:
        """Returns what Slurm knows of a job, e.g. JobState, ExitCode (CODE:SIGNAL), Restarts."""
        words = self.call("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, timeout: float = 60.0) -> dict[str, str]:
        """Waits until a job has ended for good and returns what Slurm knows of it.

        Raises:
          TimeoutError: it has not ended in time, in seconds.
        """
        if not _wait_until(lambda: self.describe(job)["JobState"] not in _UNFINISHED, timeout):
            raise TimeoutError(f"job {job} has not ended: {self.describe(job)}")
        return self.describe(job)
