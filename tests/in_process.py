"""Runs a command's main in this process, for tests that need many runs and cannot pay for a process each."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import sys

from absl import flags
import pytest

LOGGER = logging.getLogger("mean_jax")


@contextlib.contextmanager
def own_flags() -> Iterator[None]:
    """Hides the flags of commands imported elsewhere in this process, which may have the same names."""
    hidden = _project_flags()
    for _, flag in hidden:
        delattr(flags.FLAGS, flag.name)
    try:
        yield
    finally:
        for _, flag in _project_flags():
            delattr(flags.FLAGS, flag.name)
        for module, flag in hidden:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module, flag)


def _project_flags() -> list[tuple[str, flags.Flag]]:
    modules = flags.FLAGS.flags_by_module_dict()
    return [(module, flag) for module, own in modules.items() if module.startswith("mean_jax.") for flag in own]


def _reset_log() -> None:
    """Lets the next command set up the log anew: a handler keeps the captured stream of the call that made it."""
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
    LOGGER.propagate = True  # else pytest puts a handler of its own there, and the command none


class CommandRunner:
    """Calls `load()`, which imports a command afresh so that it defines its flags, and then the main it returns."""

    def __init__(
        self,
        load: Callable[[], Callable[[], None]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._load, self._monkeypatch, self._capsys = load, monkeypatch, capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Returns what the command writes to standard error after checking its exit code."""
        self._monkeypatch.setattr(sys, "argv", ["command", *arguments])
        _reset_log()
        with own_flags(), pytest.raises(SystemExit) as stop:
            self._load()()
        _reset_log()
        error = self._capsys.readouterr().err
        assert (stop.value.code or 0) == code, error
        return error
