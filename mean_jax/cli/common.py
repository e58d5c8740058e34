"""What every command shares: flags and --help, one error line and exit code 2 for a user's mistake."""

from collections.abc import Callable, Sequence
import errno
import functools
import os
import signal
import sys
from typing import NoReturn

from absl import flags, logging

from mean_jax import log
from mean_jax.errors import UserError

EXIT_USER_ERROR = 2


def fail(message: object) -> NoReturn:
    """Prints one `error:` line and leaves the process with exit code 2."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)


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
        return f"no space left on the disk while writing {where}; free some or choose another output folder"
    return f"{where}: {os.strerror(error.errno) if error.errno else error}"


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
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _parse_flags(argv, flag_values)
        log.start()
        main()
    except UserError as error:
        fail(error)
    except OSError as error:
        fail(_os_error_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
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
