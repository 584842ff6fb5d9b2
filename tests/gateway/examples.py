"""The examples of good and bad answers that everybody who reads answers goes by."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from blocks.engines.answers import Verdict
from blocks.ports.gateway import RequestKind

FILE = Path(__file__).with_name("answers.yaml")


@dataclass(frozen=True)
class Example:
    name: str
    amiss: Verdict
    kind: RequestKind = "chat"
    events: tuple[str, ...] = ()
    stream: str | None = None
    json: str | None = None
    tokens: int | None = None
    """None where it is not told how many there are."""
    error_status: int | None = None

    @property
    def is_stream(self) -> bool:
        return self.json is None

    @property
    def body(self) -> str:
        if self.json is not None:
            return self.json
        return "".join(f"data: {event}\n\n" for event in self.events) if self.stream is None else self.stream


def _of_response(name: str, response: str) -> str:
    return f'event: {name}\ndata: {{"type":"{name}","response":{{{response}}}}}'


LONG = f'"status":"completed","instructions":"{"x" * 70_000}"'
"""What the user has said stands in what a response begins with and ends in."""
LONG_RESPONSE = (
    f"{_of_response('response.created', LONG)}\n\n{_of_response('response.in_progress', LONG)}\n\n",
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"so"}\n\n',
    _of_response("response.completed", LONG),
    "\n",
    "\n",
)
"""In the pieces that it comes in: good, with one token, which is in the second."""

EXAMPLES = tuple(Example(**example) for example in yaml.safe_load(FILE.read_text(encoding="utf-8")))
