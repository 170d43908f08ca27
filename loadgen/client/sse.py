"""Server-sent events out of bytes as they come (WHATWG HTML, 9.2): `data:` lines, joined, up to an empty line.

Of the other fields only one counts here: an event of the type `error`, with data or without. Comments, which servers
send to keep a connection open, are passed over.
"""

from __future__ import annotations


class EventSplitter:
    def __init__(self) -> None:
        self.saw_error = False  # an event of the type `error` has come
        self._rest = b""

    @property
    def has_rest(self) -> bool:
        """The stream stopped inside an event."""
        return bool(self._rest.strip())

    @property
    def rest(self) -> bytes | None:
        """The data of an event that has begun and lacks its empty line."""
        return self._data_of(self._rest.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is complete now."""
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            held = data.endswith(b"\r")  # its \n may come with the next bytes
            data = data[: len(data) - held].replace(b"\r\n", b"\n") + b"\r" * held
        *events, self._rest = data.split(b"\n\n")
        return [found for event in events if (found := self._data_of(event)) is not None]

    def _data_of(self, event: bytes) -> bytes | None:
        if event.startswith(b"data: ") and b"\n" not in event:
            return event[6:]
        found = []
        for line in event.split(b"\n"):
            name, _, value = line.partition(b":")
            if name == b"data":
                found.append(value.removeprefix(b" "))
            elif name == b"event" and value.strip() == b"error":
                self.saw_error = True
        return b"\n".join(found) if found else None
