"""The one exception for a mistake that the user can mend."""


class UserError(Exception):
    """Says in one line which file, column, row or flag is at fault and how to mend it.

    The commands print it as a single ``error:`` line and exit with code 2; every other exception is a defect of
    mean-jax and keeps its traceback.
    """
