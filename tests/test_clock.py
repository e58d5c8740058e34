"""The clock of the parts of a run."""

import time

from mean_jax.training.clock import LapClock


def test_every_moment_belongs_to_one_part(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = LapClock()
    for part, seconds in (("start", 9.0), ("steps", 2.0), ("validation", 1.0), ("steps", 4.0)):
        now += seconds
        if part == "start":
            clock.lap_once(part)
        else:
            clock.lap(part)
        clock.lap_once("start")  # over already
    assert str(clock) == "start 9.0 s, steps 6.0 s, validation 1.0 s"
