"""What every command shares: flag parsing, one error line and exit code 2 for a user's mistake."""

from collections.abc import Callable, Sequence
import errno
import os
import sys

from absl import app, flags, logging

from mean_jax import log
from mean_jax.errors import UserError

EXIT_USER_ERROR = 2


def fail(message: object) -> None:
    """Prints one `error:` line and leaves the process with exit code 2."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        fail(error)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; every option is a --flag, see --help")
    return rest


def _os_error_line(error: OSError) -> str:
    where = error.filename or "the output"
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return f"no space left on the disk while writing {where}; free some or choose another output folder"
    return f"{where}: {os.strerror(error.errno) if error.errno else error}"


def run(main: Callable[[], None], argv: list[str] | None = None) -> None:
    """Parses flags, runs `main()` and turns a user's mistake into one line; the console scripts call this.

    Args:
      main: the command, called once the flags are parsed.
      argv: program name and flags; sys.argv if not given.
    """

    def guarded(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # absl's log is the libraries'; ours is mean_jax.log
        log.start()
        try:
            main()
        except UserError as error:
            fail(error)
        except OSError as error:
            fail(_os_error_line(error))

    app.run(guarded, argv=argv, flags_parser=_parse_flags)
