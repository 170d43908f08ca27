"""One prompt and the fleet it meets, and what everything would cost, in estimated milliseconds.

    prefill p, decode d:  queue(p) + prefill(p)  +  exposed transfer(p, d)  +  decode(d)
    d alone:              queue(d) + prefill(d)  +  disturbance(d)          +  decode(d)

The first two terms are the time to the first token. Rates are the workers' own measurements, drawn towards their
role's mean by as much as predictions have been wrong lately (`drawn`); one that has measured nothing yet is taken at
the mean, so that a fresh worker is neither flooded nor starved.

Knows no clock, socket, Redis or randomness but its dice; decides nothing (`policy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from diptych.messages import Role
from router.placement.dice import Dice
from router.placement.rates import Rates, drawn
from router.placement.views import Avoid, Learnt, Link, PromptView, WorkerView, rounded

_PREFILL = Role.PREFILL  # looked up for each of a thousand workers


class Local(Enum):
    """Whether decode may compute the prompt itself."""

    NEVER = "never"
    IF_NEEDED = "if needed"  # there is no pair
    IF_SOONER = "if sooner"


@dataclass(slots=True)
class Scene:
    """Everything a policy may ask. Costs are methods, named after their unit."""

    prompt: PromptView
    matches: Mapping[str, int]  # tokens of this prompt that a worker is believed to hold; who is missing holds none
    prefills: Sequence[WorkerView]
    decodes: Sequence[WorkerView]
    turn: int  # rises with every placement of a router
    dice: Dice
    avoid: Avoid
    learnt: Learnt
    local: Local
    rates: Rates  # means over the fleet
    _ms_per_token: dict[float, float] = field(default_factory=dict)  # by own rate; of decode workers by its negative

    def among(self, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Scene:
        """The same for a few of the workers, without a reference to the others."""
        matches = {worker.worker_id: self.matched(worker) for worker in (*prefills, *decodes)}
        return replace(self, matches=matches, prefills=prefills, decodes=decodes)

    def matched(self, worker: WorkerView) -> int:
        return self.matches.get(worker.worker_id, 0)

    def uncached(self, worker: WorkerView) -> int:
        """Tokens this worker would have to compute. At least one is always computed."""
        return max(1, self.prompt.num_tokens - self.matches.get(worker.worker_id, 0))

    def has_room(self, worker: WorkerView) -> bool:
        """For the prompt."""
        return worker.available_blocks >= self.prompt.num_blocks

    @property
    def allows_all(self) -> bool:
        return not self.avoid.pairs

    def allows(self, prefill: WorkerView | None, decode: WorkerView) -> bool:
        """Nothing has just failed between the two, or on decode alone."""
        pairs = self.avoid.pairs
        return not pairs or (prefill.worker_id if prefill else "", decode.worker_id) not in pairs

    # --- the terms ------------------------------------------------------------------------------------------------

    def ms_per_token(self, worker: WorkerView) -> float:
        own = worker.prefill_ms_per_token
        key = own if worker.role is _PREFILL else -own
        known = self._ms_per_token.get(key)  # rates come in steps, so that a thousand workers have few
        if known is None:
            known = self._ms_per_token[key] = self._drawn_ms_per_token(own, worker.role)
        return known

    def _drawn_ms_per_token(self, own: float, role: Role) -> float:
        rates = self.rates
        if not own:
            return rates.prefill_ms_per_token
        mean = rates.prefill_own_ms_per_token if role is _PREFILL else rates.decode_own_ms_per_token
        return drawn(own, mean or own, 1 - self.learnt.error)

    def queue_ms(self, worker: WorkerView) -> float:
        return worker.queued_prefill_tokens * self.ms_per_token(worker)

    def prefill_ms(self, worker: WorkerView) -> float:
        return self.uncached(worker) * self.ms_per_token(worker)

    def first_token_ms(self, worker: WorkerView) -> float:
        """`queue_ms` and `prefill_ms`. The client has its first token then; the transfer does not delay it."""
        uncached = self.prompt.num_tokens - self.matches.get(worker.worker_id, 0)
        tokens = worker.queued_prefill_tokens + (uncached if uncached > 1 else 1)
        return tokens * self.ms_per_token(worker)

    def exposed_ms(self, prefill: WorkerView, decode: WorkerView) -> float:
        """From prefill's last token to decode being able to go on (see `_exposed_ms`)."""
        return self._exposed_ms(prefill, self.link(prefill, decode), self.prompt.num_tokens - self.matched(decode))

    def least_exposed_ms(self, prefill: WorkerView, longest_match: int) -> float:
        """No decode worker that holds `longest_match` tokens or fewer has less: for pruning."""
        best, other = prefill.best_link, self._unmeasured_link(prefill)
        link = Link(max(best.bytes_per_s, other.bytes_per_s), min(best.latency_ms, other.latency_ms))
        return self._exposed_ms(prefill, link, self.prompt.num_tokens - longest_match)

    def step_ms(self, decode: WorkerView) -> float:
        """The inter-token latency there would be with this sequence in the batch.

        Where every worker computes prompts, batches come and go with them and lines through step times are poor: they
        are drawn to their mean as well. Behind prefill workers they are left apart: that packs sequences a little, and
        leaves somebody free to compute a prompt when prefill is behind (docs/decisions/041).
        """
        rates, batch = self.rates, decode.num_running + 1
        own = decode.decode_base_ms + decode.decode_ms_per_sequence * batch
        if own and rates.apart:
            return own
        mean = rates.decode_base_ms + rates.decode_ms_per_sequence * batch
        return drawn(own, mean, 1 - self.learnt.error) if own else mean

    def decode_ms(self, decode: WorkerView) -> float:
        """The completion, as long as completions were lately."""
        return self.learnt.expected_tokens * self.step_ms(decode)

    def disturbance_ms(self, decode: WorkerView) -> float:
        """By how much the sequences that decode there would together be later.

        A step with a chunk of the prompt in it takes longer; each running sequence waits for it. What the steps would
        have taken anyway does not count.
        """
        chunks = -(-self.uncached(decode) // decode.chunk_tokens) if decode.chunk_tokens else 1
        longer_ms = self.prefill_ms(decode) - chunks * self.step_ms(decode)
        return decode.num_running * max(0.0, longer_ms)

    def link(self, prefill: WorkerView, decode: WorkerView) -> Link:
        measured = prefill.links.get(decode.worker_id)
        return rounded(measured) if measured else self._unmeasured_link(prefill)

    def _unmeasured_link(self, prefill: WorkerView) -> Link:
        """Like this worker's other links, or like everybody's."""
        rate = prefill.transfer_bytes_per_s or prefill.best_link.bytes_per_s or self.rates.transfer_bytes_per_s
        return Link(rate, prefill.best_link.latency_ms)

    def _exposed_ms(self, prefill: WorkerView, link: Link, to_move: int) -> float:
        """The link's latency, and what could not be moved while prefill computed.

        That is the last chunk, or more where the link is slower than the computation. Blocks that prefill had cached
        can go at once.
        """
        if link.bytes_per_s <= 0 or to_move <= 0:
            return link.latency_ms
        bytes_per_token = self.prompt.num_blocks * self.prompt.block_bytes / self.prompt.num_tokens
        ms_per_token = 1e3 * bytes_per_token / link.bytes_per_s
        uncached = self.uncached(prefill)
        tail = min(to_move, uncached, prefill.chunk_tokens or uncached)
        behind_ms = to_move * ms_per_token - uncached * self.ms_per_token(prefill)
        return link.latency_ms + max(tail * ms_per_token, behind_ms)


@dataclass(frozen=True, slots=True)
class Considered:
    """The best of what a placement had to choose from, kept to explain it. Its scene knows only their matches."""

    scene: Scene
    prefills: tuple[WorkerView, ...]
    decodes: tuple[WorkerView, ...]
