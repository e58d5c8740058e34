"""How long the parts of a run take."""

import time


class LapClock:
    """Seconds of named parts, each measured from the end of the one before."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to a part."""
        now = time.monotonic()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now

    def lap_once(self, part: str) -> None:
        """Does the same unless the part has had a lap already."""
        if part not in self._seconds:
            self.lap(part)

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self._seconds.items())
