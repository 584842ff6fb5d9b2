"""The ways a port says no. Each message names the thing, the value and the next step, and holds no secret."""

from blocks.cleaning import without_secrets


class SkyferryError(Exception):
    """Anything that Skyferry itself has to say about what went wrong.

    Whatever a message was made of, no secret that a block knows stands in it, nor what an address holds of one.
    """

    def __init__(self, *said: object) -> None:
        super().__init__(*(without_secrets(word) if isinstance(word, str) else word for word in said))


class Unavailable(SkyferryError):
    """It did not work this time and may work the next: the only error that a task retries."""

    def __init__(self, said: str, *, after_seconds: float | None = None) -> None:
        super().__init__(said)
        self.after_seconds = after_seconds
        """How long whoever said so wants to be left alone; None where that was not said."""


class Refused(SkyferryError):
    """It will not work however often it is tried; a person, or another choice, has to act."""


class Unsupported(Refused):
    """This is not known there at all; whoever has another way may take it."""


class Unsound(SkyferryError):
    """A replica answers, and nobody can use what it says: the weights, the engine or the machine are broken."""


class Conflict(SkyferryError):
    """Somebody else wrote first: read again what stands, then decide anew."""


class NoCapacity(SkyferryError):
    """This cell will not give the machine now, and why; another cell may."""

    def __init__(self, cell: str, reason: str) -> None:
        super().__init__(cell, reason)
        self.cell, self.reason = self.args

    def __str__(self) -> str:
        return f"{self.cell} said no: {self.reason}"


class Unexplained(NoCapacity):
    """This cell gave no machine, and nobody knows its words: it may be the cell's fault, or ours."""


class NotReady(NoCapacity):
    """This cell gave the machine, but no engine answered there in time: the machine's fault, or the model's."""


class EngineEnded(NotReady):
    """This cell gave the machine, and the engine ended there by itself: no disk, no memory, a flag that it refuses."""
