"""Server-sent events out of bytes as they come (WHATWG HTML, 9.2): `data:` lines, joined, up to an empty line.

Comments, which servers send to keep a connection open, and other fields are passed over.
"""

from __future__ import annotations


class EventSplitter:
    def __init__(self) -> None:
        self._rest = b""

    @property
    def has_rest(self) -> bool:
        """The stream stopped inside an event."""
        return bool(self._rest.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is complete now."""
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            held = data.endswith(b"\r")  # its \n may come with the next bytes
            data = data[: len(data) - held].replace(b"\r\n", b"\n") + b"\r" * held
        *events, self._rest = data.split(b"\n\n")
        return [found for event in events if (found := _data_of(event)) is not None]


def _data_of(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
