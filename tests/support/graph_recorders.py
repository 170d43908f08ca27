"""Stand-ins for recording CUDA graphs, on any device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx


class ReplayedOperators:
    """Records operators as a CUDA graph records kernels: once, with every number that Python had at the time frozen in
    and every tensor by its memory. Asking for a tensor's value while recording is an error, as there."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._operators = make_fx(compute)()
        self.hidden: Tensor = self._operators()
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        self.hidden.copy_(self._operators())


class CalledAgain:
    """Calls the function again; for code whose stand-ins look at values."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self.hidden = compute().clone()
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        self.hidden.copy_(self._compute())


class Recording:
    """A `Recorder` that keeps what it recorded."""

    def __init__(self, kind: type[ReplayedOperators] | type[CalledAgain] = ReplayedOperators) -> None:
        self._kind = kind
        self.graphs: list[ReplayedOperators | CalledAgain] = []

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[ReplayedOperators | CalledAgain, Tensor]:
        graph = self._kind(compute)
        self.graphs.append(graph)
        return graph, graph.hidden

    @property
    def num_replays(self) -> int:
        return sum(graph.num_replays for graph in self.graphs)
