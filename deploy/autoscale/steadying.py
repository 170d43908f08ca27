"""What a pool is to be, given what it needs from moment to moment: up at once, down late, never on silence.

Up: when it was needed twice in a row, or at once where a limit is being missed. Down: when fewer workers, with a
margin, would have been enough at every moment of a whole window. A moment about which not enough is known, or at which
a limit is missed, counts as one at which all were needed, so the window begins anew. Both are bounded in their step.

The window's maximum is Kubernetes' stabilisation (autoscaling/v2, `stabilizationWindowSeconds`, 300 s by default).
"""

from __future__ import annotations

from collections import deque

from deploy.autoscale.settings import AutoscaleSettings, Bounds
from deploy.autoscale.signals import Known, Need, Verdict

CALM_SHARE = 0.25  # of the window, between two steps down: each is seen to do no harm


class Steadying:
    """Of one pool. Its memory may be lost: then nothing shrinks for one window."""

    def __init__(self, settings: AutoscaleSettings) -> None:
        self._settings = settings
        self._needed_before: int | None = None
        self._enough: deque[tuple[float, int]] = deque()  # (when, workers that were enough with a margin)
        self._since_s: float | None = None
        self._shrunk_s = float("-inf")

    def steady(self, now_s: float, known: Known, need: Need, need_with_margin: Need, bounds: Bounds) -> Verdict:
        """
        Args:
            need: of the load as it is.
            need_with_margin: of a load that is larger by the margin; at least `need`.
        """
        wanted = known.wanted
        if (clamped := bounds.clamp(wanted)) != wanted:
            return Verdict(wanted, clamped, clamped, f"the bounds are {bounds.min} to {bounds.max}")
        silence = _silence(known)
        if silence or not need.known:
            self._remember(now_s, wanted)
            self._needed_before = None
            return Verdict(wanted, wanted, wanted, f"held: {silence or need.reason}")
        needed = bounds.clamp(need.count)
        spare = known.fresh == known.ready and not need.urgent
        self._remember(now_s, bounds.clamp(need_with_margin.count) if spare else max(wanted, needed))
        before, self._needed_before = self._needed_before, needed
        if needed > wanted:
            return self._up(wanted, needed, before, need)
        return self._down(now_s, wanted, needed, need)

    def _up(self, wanted: int, needed: int, before: int | None, need: Need) -> Verdict:
        confirmed = needed if need.urgent else min(needed, before if before is not None else wanted)
        target = min(confirmed, wanted + max(self._settings.max_step_up, wanted))
        if target <= wanted:
            return Verdict(wanted, wanted, needed, f"{needed} would be needed, for the first time: {need.reason}")
        return Verdict(wanted, target, needed, need.reason)

    def _down(self, now_s: float, wanted: int, needed: int, need: Need) -> Verdict:
        window_s = self._settings.down_after_s
        enough = max(count for _, count in self._enough)
        observed_s = now_s - (self._since_s if self._since_s is not None else now_s)
        if enough >= wanted:
            return Verdict(wanted, wanted, needed, need.reason)
        if observed_s < window_s or now_s - self._shrunk_s < CALM_SHARE * window_s:
            waited = f"{enough} would do, for {min(observed_s, now_s - self._shrunk_s):.0f} s now"
            return Verdict(wanted, wanted, needed, f"{waited}: {need.reason}")
        self._shrunk_s = now_s
        target = wanted - max(1, (wanted - enough) // 2)
        return Verdict(wanted, target, needed, f"{enough} would have done for {window_s:g} s: {need.reason}")

    def _remember(self, now_s: float, enough: int) -> None:
        self._since_s = now_s if self._since_s is None else self._since_s
        self._enough.append((now_s, enough))
        while self._enough[0][0] < now_s - self._settings.down_after_s:
            self._enough.popleft()


def _silence(known: Known) -> str:
    """Why this pool cannot be judged: nobody in it speaks, or only so few that the rest may be anything."""
    if not known.ready:
        return "no worker serves yet"
    if known.silent * 2 >= known.ready:
        return f"{known.silent} of {known.ready} workers are silent"
    return ""
