"""A cluster that somebody else started, as it was found: what has to be undone when the experiment is over. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from loadgen.experiment.admin import WORKERS, Status


@dataclass(frozen=True, slots=True)
class Lent:
    """
    Attributes:
        counts: workers of each pool that were wanted.
        follows_load: pools whose size the cluster's autoscaling decides, unless somebody says one: an experiment does.
    """

    counts: dict[str, int]
    follows_load: tuple[str, ...] = ()

    @classmethod
    def of(cls, status: Status) -> Lent:
        scaling = status.autoscale
        pools = scaling.pools if scaling and scaling.mode == "on" else {}
        free = tuple(kind for kind in WORKERS if kind in pools and not pools[kind].pinned)
        return cls({kind: status.wanted.get(kind, 0) for kind in WORKERS}, free)

    def __str__(self) -> str:
        """As `diptych scale` takes it."""
        return " ".join(f"{kind}={count}" for kind, count in self.counts.items())

    def requests(self) -> list[dict[str, int | str]]:
        """Bodies of what the admin door's /scale has to be asked, in this order."""
        bodies: list[dict[str, int | str]] = [dict[str, int | str](self.counts)]
        if self.follows_load:
            bodies.append(dict[str, int | str].fromkeys(self.follows_load, "auto"))
        return bodies
