"""One choice's text as it may be shown: whole characters only, and nothing that may become a stop string.

Pure: takes token ids, returns text. Knows nothing about the other choices, log-probabilities or stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from diptych.detokenizer import Detokenizer


class TextStream:
    """Feeds tokens to a detokenizer and cuts the text exactly before the stop string that is complete first.

    What was shown never depends on how tokens arrive: a stop string is found by its end, so the first one to be
    completed wins, and of two completed by the same character the longer.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(stop)
        self._held = ""  # could be the beginning of a stop string
        self.stopped = False  # a stop string was hit: nothing more will be shown

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Text that became showable with this token. With `may_stop` false, stop strings are let through."""
        return self._show(self._detokenizer.push(token_id), may_stop, final=False)

    def flush(self) -> str:
        """The rest, when no token will follow."""
        return self._show(self._detokenizer.flush(), may_stop=True, final=True)

    def _show(self, text: str, may_stop: bool, final: bool) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        text, self._held = self._held + text, ""
        if not may_stop:
            return text
        cut = self._find_stop(text)
        if cut is not None:
            self.stopped = True
            return text[:cut]
        if not final:
            start = self._possible_stop(text)
            text, self._held = text[:start], text[start:]
        return text

    def _find_stop(self, text: str) -> int | None:
        """Where the stop string begins that ends first in `text`."""
        found = ((text.find(stop), len(stop)) for stop in self._stop)
        spans = [(start + length, start) for start, length in found if start >= 0]
        return min(spans)[1] if spans else None

    def _possible_stop(self, text: str) -> int:
        """Where the longest end of `text` starts that is the beginning of a stop string; `len(text)` if none is."""
        first = len(text)
        for stop in self._stop:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= start < first:
                if stop.startswith(text[start:]):
                    first = start
                    break
                start = text.find(stop[0], start + 1)
        return first
