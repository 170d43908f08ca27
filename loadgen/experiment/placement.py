"""How a cluster places requests, as its router's /health says it: asked before a run, so that nobody measures one
policy under another's name."""

from __future__ import annotations

import httpx
import msgspec

from loadgen.experiment.shape import Misfit, Shape, SystemUnavailable


class Placement(msgspec.Struct, frozen=True):
    """Empty: not said; whoever has no key of the door is told counts only."""

    policy: str = ""
    remote_prefill: str = ""

    def check(self, shape: Shape, url: str) -> None:
        """
        Raises:
            Misfit: requests would be placed in another way than this shape says, or nobody knows how.
        """
        if not self.policy:
            raise Misfit(f"{url}/health does not say by which policy requests are placed; is the API key right?")
        if self.policy != shape.policy:
            raise Misfit(
                f"the router at {url} places by {self.policy}, and this run was to measure {shape.policy}; a running "
                "cluster cannot change its policy: start one with it, or let a cluster be started for this"
            )
        told = self.remote_prefill
        if told != shape.router_remote_prefill and (shape.prefill or told == "always"):
            raise Misfit(
                f"the router at {url} has remote_prefill {told!r}, and this run of {shape} was to measure "
                f"{shape.remote_prefill!r}; start a cluster with it, or let one be started for this"
            )


class _Health(msgspec.Struct):
    details: Placement = Placement()


async def ask_placement(http: httpx.AsyncClient, url: str) -> Placement:
    """
    Args:
        url: of a router's HTTP door, which also says so while it is not healthy.

    Raises:
        SystemUnavailable: it gives no answer, or another one than a router's.
    """
    try:
        return msgspec.json.decode((await http.get(f"{url}/health")).content, type=_Health).details
    except (httpx.HTTPError, ValueError) as error:
        raise SystemUnavailable(f"{url}/health does not say how requests are placed: {error}") from error
