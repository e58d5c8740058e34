"""What every command shares: flags and --help, one error line and exit code 2 for a user's mistake.

In a job of several processes any end but the normal one is told to the others first, see `mean_jax.distributed`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import functools
import os
import signal
import sys
import traceback
from typing import NoReturn

from absl import flags, logging

from mean_jax import distributed, log
from mean_jax.distributed import EXIT_USER_ERROR
from mean_jax.errors import UserError

flags.disclaim_key_flags()  # what this module defines belongs to the command that asks for it
_EXIT_FAILED = 1
_REPEAT_AFTER_S = 0.01  # a lost interrupt; longer than a callback takes, too short for a person to notice


def fail(message: object) -> NoReturn:
    """Prints one `error:` line for the whole job and leaves the process with exit code 2."""
    line = " ".join(str(message).split())
    distributed.end("error", EXIT_USER_ERROR, line)
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)


def define_job_flags(flag_values: flags.FlagValues) -> None:
    """Gives a command the flags of a job of several processes; `run` then joins it before it calls the command."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT on which process 0 of the job awaits the others; the port must be free on that host. It, "
        "--num_processes and --process_id are found without flags under SLURM (srun) and Open MPI and on TPU pods, "
        "or in MEAN_JAX_COORDINATOR_ADDRESS, MEAN_JAX_NUM_PROCESSES and MEAN_JAX_PROCESS_ID.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "Processes of the job; 1 runs this one alone whatever the environment says.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_float(
        "connect_timeout",
        distributed.CONNECT_TIMEOUT_S,
        "Seconds within which all processes must have come.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "peer_timeout",
        distributed.PEER_TIMEOUT_S,
        "Seconds without a sign of life after which a process counts as lost, which ends the others (exit code 75).",
        lower_bound=1,
        flag_values=flag_values,
    )


def _join_job(flag_values: flags.FlagValues) -> None:
    given = distributed.JobFlags(flag_values.coordinator_address, flag_values.num_processes, flag_values.process_id)
    timeout = flag_values.connect_timeout
    settings = distributed.find_settings(given, os.environ)
    if settings is None and given.num_processes is None:
        settings = distributed.find_tpu_settings(timeout)
    distributed.initialize(settings, flag_values.peer_timeout, timeout)


def _parse_flags(argv: Sequence[str], flag_values: flags.FlagValues) -> None:
    for name in flag_values:  # a second call in one process begins with the defaults
        flag_values[name].unparse()
    try:
        rest = flag_values(argv)
    except flags.Error as error:
        raise UserError(error) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; every option is a --flag, see --help")


def _os_error_line(error: OSError) -> str:
    where = error.filename or "the output"
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return f"no space left on the disk while writing {where}; free some or choose another folder"
    return f"{where}: {os.strerror(error.errno) if error.errno else error}"


def _end_job(stopped: SystemExit) -> None:
    """Takes the other processes along when a signal ends this one."""
    if isinstance(stopped.code, int) and stopped.code > 128:
        distributed.end("stopped", stopped.code, f"stopped by {signal.Signals(stopped.code - 128).name}")


def _end_failed_job(error: Exception) -> None:
    """Takes the other processes along when this one met a defect; if it met the loss of one, that one is named."""
    if distributed.is_joined():
        distributed.await_verdict(error)
        traceback.print_exc()
        last_line = " ".join(traceback.format_exception_only(error)[-1].split())
        distributed.end("failed", _EXIT_FAILED, f"failed, its traceback tells more: {last_line}")


def _exit(number: int, _: object) -> NoReturn:
    signal.setitimer(signal.ITIMER_REAL, 0)  # a repeated signal must not cut short what this one begins to clean up
    sys.exit(128 + number)


@contextlib.contextmanager
def _repeated_interrupts() -> Iterator[None]:
    """Raises Ctrl-C, and the exit that SIGTERM asks for, again where Python has thrown them away.

    It does so with all that is raised in a `__del__` or in a callback of the garbage collector, of which JAX has one,
    and in the hook that it tells as well. A timer's signal comes a little later, most likely in ordinary code; if not,
    it is lost and repeated in its turn.
    """
    lost: list[BaseException] = []
    report = sys.unraisablehook

    def hear(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
            lost.append(unraisable.exc_value.with_traceback(None))  # which would keep alive what is being deleted
            signal.setitimer(signal.ITIMER_REAL, _REPEAT_AFTER_S)
        else:
            report(unraisable)

    def repeat(number: int, _: object) -> None:
        if lost:
            raise lost[-1]
        signal.signal(number, before)  # somebody else's alarm
        signal.raise_signal(number)

    before = signal.signal(signal.SIGALRM, repeat)
    sys.unraisablehook = hear
    try:
        yield
    finally:
        if lost:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = report
        signal.signal(signal.SIGALRM, before)


def run(
    main: Callable[[], None],
    argv: Sequence[str] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
    more_help: Callable[[], str] = str,
) -> NoReturn:
    """Parses flags, calls `main()` and leaves the process; the console scripts call this.

    Args:
      main: the command, called once the flags are parsed; its module's docstring heads the --help text.
      argv: program name and flags; sys.argv if not given.
      flag_values: the command's flags.
      more_help: what --help says after the flags.
    """
    argv = sys.argv if argv is None else argv
    module = sys.modules[main.__module__]
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(f"{module.__doc__}{flag_values.module_help(module)}\n{more_help()}")
        sys.exit(0)
    logging.set_verbosity(logging.WARNING)  # absl's log is the libraries'; ours is mean_jax.log
    # A command that the scheduler stops removes its temporary files on the way out.
    signal.signal(signal.SIGTERM, _exit)
    try:
        with _repeated_interrupts():
            _parse_flags(argv, flag_values)
            log.start()
            if "num_processes" in flag_values:
                _join_job(flag_values)
            main()
            distributed.leave()
    except UserError as error:
        fail(error)
    except OSError as error:
        fail(_os_error_line(error))
    except SystemExit as stopped:
        _end_job(stopped)
        raise
    except KeyboardInterrupt:
        distributed.end("stopped", 128 + signal.SIGINT, "interrupted")
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        _end_failed_job(error)
        raise
    sys.exit(0)


def run_with_config(
    main: Callable[[list[str]], None], flag_values: flags.FlagValues, config_help: Callable[[], str]
) -> NoReturn:
    """Runs a command that also takes `--config.SECTION.FIELD=VALUE`; `main` gets these as SECTION.FIELD=VALUE."""
    prefix = "--config."
    overrides = [argument.removeprefix(prefix) for argument in sys.argv[1:] if argument.startswith(prefix)]
    rest = [argument for argument in sys.argv if not argument.startswith(prefix)]
    command = functools.partial(main, overrides)
    command.__module__ = main.__module__  # its docstring heads the --help text
    run(command, rest, flag_values, config_help)
