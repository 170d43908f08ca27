"""What a pool is to be, given what it needs from moment to moment: up at once, down late, never on silence.

Up: when it was needed twice in a row, or at once where a limit is being missed. Down: when fewer workers, with a
margin, would have been enough at every moment of a whole window. A moment about which not enough is known, or at which
a limit is missed, counts as one at which all were needed, so the window begins anew. Both are bounded in their step.

The window's maximum is Kubernetes' stabilisation (autoscaling/v2, `stabilizationWindowSeconds`, 300 s by default).

The window learns: a pool that has to grow soon after it shrank should have kept what it had, so the window doubles,
up to a bound; it halves again when a step down was not regretted. That is binary exponential back-off, as of colliding
senders (R. Metcalfe, D. Boggs, Ethernet, CACM 1976) and of retransmission timers (RFC 6298, 5.5): loads that come back
again and again are waited for, and others cost no more than before.
"""

from __future__ import annotations

from collections import deque

from deploy.autoscale.settings import AutoscaleSettings, Bounds
from deploy.autoscale.signals import Known, Need, Verdict

CALM_SHARE = 0.25  # of the window that is set, between two steps down: each is seen to do no harm
REGRET_WINDOWS = 2.0  # after a step down, within which growing says that it was too early


class Steadying:
    """Of one pool. Its memory may be lost: then nothing shrinks for one window.

    Attributes: window_s: for so long fewer workers must have been enough, as learnt.
    """

    def __init__(self, settings: AutoscaleSettings) -> None:
        self._settings = settings
        self._needed_before: int | None = None
        self._enough: deque[tuple[float, int]] = deque()  # (when, workers that were enough with a margin)
        self._since_s: float | None = None
        self._shrunk_s = float("-inf")
        self._judged = True  # whether the latest step down was found right or wrong
        self.window_s = settings.down_after_s

    def steady(self, now_s: float, known: Known, need: Need, need_with_margin: Need, bounds: Bounds) -> Verdict:
        """
        Args:
            need: of the load as it is.
            need_with_margin: of a load that is larger by the margin; at least `need`.
        """
        wanted = known.wanted
        if (clamped := bounds.clamp(wanted)) != wanted:
            return Verdict(wanted, clamped, clamped, f"the bounds are {bounds.min} to {bounds.max}")
        self._forgive(now_s)
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
            return self._up(now_s, wanted, needed, before, need)
        return self._down(now_s, wanted, needed, need)

    def _up(self, now_s: float, wanted: int, needed: int, before: int | None, need: Need) -> Verdict:
        confirmed = needed if need.urgent else min(needed, before if before is not None else wanted)
        target = min(confirmed, wanted + max(self._settings.max_step_up, wanted))
        if target <= wanted:
            return Verdict(wanted, wanted, needed, f"{needed} would be needed, for the first time: {need.reason}")
        self._regret()
        return Verdict(wanted, target, needed, need.reason)

    def _down(self, now_s: float, wanted: int, needed: int, need: Need) -> Verdict:
        window_s = self.window_s
        enough = max(count for when_s, count in self._enough if when_s >= now_s - window_s)
        observed_s = now_s - (self._since_s if self._since_s is not None else now_s)
        if enough >= wanted:
            return Verdict(wanted, wanted, needed, need.reason)
        calm_s = CALM_SHARE * self._settings.down_after_s
        if observed_s < window_s or now_s - self._shrunk_s < calm_s:
            waited = f"{enough} would do, for {min(observed_s, now_s - self._shrunk_s):.0f} s now"
            return Verdict(wanted, wanted, needed, f"{waited}: {need.reason}")
        self._shrunk_s, self._judged = now_s, False
        target = wanted - max(1, (wanted - enough) // 2)
        return Verdict(wanted, target, needed, f"{enough} would have done for {window_s:g} s: {need.reason}")

    def _regret(self) -> None:
        """The pool grows: if the latest step down is not long ago, it was one too early."""
        if not self._judged:
            self._judged = True
            self.window_s = min(2 * self.window_s, self._settings.longest_down_after_s)

    def _forgive(self, now_s: float) -> None:
        if not self._judged and now_s - self._shrunk_s > REGRET_WINDOWS * self.window_s:
            self._judged = True
            self.window_s = max(self.window_s / 2, self._settings.down_after_s)

    def _remember(self, now_s: float, enough: int) -> None:
        self._since_s = now_s if self._since_s is None else self._since_s
        self._enough.append((now_s, enough))
        while self._enough[0][0] < now_s - self._settings.longest_down_after_s:
            self._enough.popleft()


def _silence(known: Known) -> str:
    """Why this pool cannot be judged: nobody in it speaks, or only so few that the rest may be anything."""
    if not known.ready:
        return "no worker serves yet"
    if known.silent * 2 >= known.ready:
        return f"{known.silent} of {known.ready} workers are silent"
    return ""
