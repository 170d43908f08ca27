"""What Diptych's processes say to each other, as frozen structs.

Router and workers exchange these as msgpack over gRPC (`diptych.rpc`); workers exchange `Delivery` as a NIXL
notification. The public door speaks protobuf instead (`proto/`). No text of a prompt or an answer is in any of them:
only token ids travel, and they are never logged.

Knows nothing about sockets, torch or Redis.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from diptych.errors import WireError


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


MAX_PRIORITY = 10  # priorities are -10..10, so that nobody can buy more than so much precedence


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-sequence or stop token; stop strings are found by the router
    LENGTH = "length"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one request's tokens are drawn. Checked by the router; workers trust it."""

    max_tokens: int  # per choice, >= 1
    seed: int  # always set: the router draws one where the client gave none
    n: int = 1
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()  # ends the choice; already holds EOS unless the client ignores it
    min_tokens: int = 0  # stop tokens cannot be drawn before this many
    logprobs: int | None = None  # None: off; k: the drawn token's and the k most likely ones


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the router hands it to a worker."""

    request_id: str  # unique per attempt across the cluster
    router_id: str  # whose frame stream the tokens go to
    prompt: list[int]  # token ids
    sampling: SamplingParams
    cache_scope: bytes = b""  # tenant scope mixed into the block-hash key
    remaining_ms: int = 600_000  # time left of the request's deadline
    priority: int = 0  # higher runs first; within +-MAX_PRIORITY
    traceparent: str = ""  # W3C trace context, empty when tracing is off


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """One reserved block of a decode worker. The generation rises whenever the slot is reused."""

    block: int
    generation: int


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """Decode's promise to hold blocks for one transfer from one prefill worker."""

    transfer_id: str
    decode_id: str  # incarnation that must still be alive for the slots to mean anything
    decode_address: str  # its gRPC address, for the first meeting
    first_block: int  # blocks of the prompt before this index are in decode's own cache
    slots: list[Slot]  # for blocks first_block.. of the prompt, in order
    ttl_ms: int  # left of the request's deadline: prefill posts no write later than this after it got the ticket


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Router to decode: hold blocks for a prompt that `prefill_id` will compute and push."""

    submission: Submission
    prefill_id: str
    prefill_address: str


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Router to a worker: compute this prompt. With a ticket: push its KV there. Without: decode here as well."""

    submission: Submission
    ticket: Ticket | None = None


class Started(msgspec.Struct, frozen=True):
    worker_id: str


class Abort(msgspec.Struct, frozen=True):
    """Ends a request on a worker. Idempotent: an unknown id is not an error."""

    request_id: str


class Aborted(msgspec.Struct, frozen=True):
    known: bool


class Revoke(msgspec.Struct, frozen=True):
    """Decode to prefill: post nothing more for this transfer; answer when every write of it is terminal."""

    transfer_id: str
    prefill_id: str  # who was to push; whoever else listens at its address now proves nothing about its writes


class Revoked(msgspec.Struct, frozen=True):
    """No write of the transfer is in flight and none will ever be posted."""

    transfer_id: str


class Subscribe(msgspec.Struct, frozen=True):
    """A router asks a worker for its frames. A new subscription of the same router ends the old one."""

    router_id: str


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []  # (token id, logprob), most likely first


class LegStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one leg of a request cost; sent once, with the leg's first update."""

    prompt_computed: int = 0  # tokens
    prompt_cached: int = 0  # tokens found in this worker's prefix cache
    prompt_transferred: int = 0  # tokens whose KV arrived by transfer
    queue_ms: float = 0.0  # taken by the worker to admitted by the engine, the step that ran meanwhile included
    compute_ms: float = 0.0
    transfer_bytes: int = 0
    transfer_ms: float = 0.0  # first write posted to delivery verified
    exposed_ms: float = 0.0  # prefill's last token to delivery verified


LEG_OVER = -1


class Update(msgspec.Struct, frozen=True, array_like=True):
    """What one engine step did for one choice of one request."""

    request_id: str
    choice: int  # LEG_OVER: nothing more comes from this worker, another one has taken over
    position: int  # of the first token in `token_ids` within the completion, from 0
    token_ids: list[int]
    finish_reason: FinishReason | None = None  # set with the choice's last token
    logprobs: list[TokenLogprob] | None = None
    stats: LegStats | None = None
    error: WireError | None = None  # the request ended here; choice and position mean nothing


class LinkStats(msgspec.Struct, frozen=True, array_like=True):
    """What a prefill worker has measured of its transfers to one decode worker."""

    bytes_per_s: float
    latency_ms: float


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's own view of itself. Gauges are current, `*_total` rise since the incarnation began."""

    num_running: int = 0  # sequences
    num_waiting: int = 0  # for blocks: sequences to compute, and requests to receive
    running_by_kind: dict[str, int] = {}  # the same by what was asked for: "local", "prefill", "receive"
    waiting_by_kind: dict[str, int] = {}
    num_loading: int = 0  # requests that have blocks and wait for their KV
    num_held: int = 0  # prefill requests that are computed and wait for their KV to be pushed
    waiting_prefill_tokens: int = 0  # uncomputed prompt tokens, running and waiting
    step_tokens: int = 0  # of the token budget, used by the latest step
    step_budget: int = 0  # tokens one step may compute
    max_running: int = 0  # sequences one step may hold; 0: not said
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0  # hold a reusable prefix, nobody uses them
    blocks_used: int = 0
    blocks_reserved: int = 0
    blocks_in_flight: int = 0
    blocks_quarantined: int = 0
    prefill_tokens_per_s: float = 0.0  # measured; 0 until the first prefill
    decode_step_ms: float = 0.0  # measured at the present batch size; 0 until the first step
    transfer_bytes_per_s: float = 0.0  # measured by the pusher; 0 until the first push
    links: dict[str, LinkStats] = {}  # the same for each decode worker it has pushed to, by worker id
    prompt_tokens_queried_total: int = 0  # looked up in the prefix cache; those found are `cached`
    prompt_tokens_computed_total: int = 0
    prompt_tokens_cached_total: int = 0
    prompt_tokens_transferred_total: int = 0
    generated_tokens_total: int = 0
    drafted_tokens_total: int = 0  # guessed and computed in advance
    accepted_tokens_total: int = 0  # of those, guessed right; the others were computed for nothing
    transfers_total: int = 0
    transfers_failed_total: int = 0
    transfers_refused_total: int = 0
    transfer_bytes_total: int = 0
    transfer_seconds_total: float = 0.0
    exposed_transfer_seconds_total: float = 0.0
    preemptions_total: int = 0
    evictions_total: int = 0
    expired_total: int = 0  # requests that the engine ended at their deadline
    steps_total: int = 0
    index_degraded: str = ""  # why Redis does not have all of its cache events; empty: it has, or is about to
    index_epochs_total: int = 0  # logs it has begun: 1, and one more whenever it could not vouch for the last one
    index_overflows_total: int = 0  # of them, because too many events waited for Redis


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """All that one engine step (several, if the router is slow) has for one router; now and then only stats."""

    worker_id: str
    sequence: int  # per subscription, from 0, without gaps
    updates: list[Update]
    stats: WorkerStats | None = None


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as membership knows it. `worker_id` is the incarnation: it is never reused."""

    worker_id: str  # role-host-random
    role: Role
    address: str  # host:port of its gRPC server
    state: WorkerState
    model: str
    fingerprint: str
    block_size: int  # tokens
    num_blocks: int
    block_bytes: int
    max_context: int  # tokens
    started_at: float  # unix seconds


class RouterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a router says of itself when it is ready to be asked."""

    router_id: str
    http_address: str  # host:port
    grpc_address: str
    admin_address: str = ""
    tls: bool = False  # of the HTTP and gRPC doors


class PeerHello(msgspec.Struct, frozen=True, kw_only=True):
    """Exchanged once when two workers meet, before any KV moves."""

    worker_id: str
    fingerprint: str
    agent_metadata: bytes  # opaque to us: NIXL's own connection blob
    pool_address: int  # virtual address of block 0 in the worker's process
    block_bytes: int
    num_blocks: int
    scratch_block: int | None = None  # one that nobody owns, for probing the connection
    host: str = ""  # the machine's boot id: equal on workers that could share memory
    transports: tuple[str, ...] = ()  # of UCX, as configured
    device: int = 0


class Delivery(msgspec.Struct, frozen=True, kw_only=True, tag="delivery"):
    """Prefill to decode, sent with or after the last write: what arrived, and how to go on from it."""

    transfer_id: str
    decode_id: str
    prefill_id: str
    slots: list[Slot]
    checksums: list[int | None]  # xxh3-64 of each written block, in the order of `slots`; None: not checksummed
    first_tokens: list[int]  # one per choice, at position 0
    first_post_ms: float  # first write posted, milliseconds before this message was sent
    last_token_ms: float  # prefill's last token, milliseconds before this message was sent


class Written(msgspec.Struct, frozen=True, kw_only=True, tag="written"):
    """Prefill to decode, while the prompt is still computed: these blocks of a push are there and may be verified.

    Nothing depends on it: it may be lost, and only the delivery is acted on.
    """

    transfer_id: str
    decode_id: str
    prefill_id: str
    first_index: int  # of the first one among the ticket's slots
    slots: list[Slot]
    checksums: list[int | None]  # as in `Delivery`


class Receipt(msgspec.Struct, frozen=True, kw_only=True, tag="receipt"):
    """Decode to prefill: a delivery was taken or will not be used. The answer to every copy of it."""

    transfer_id: str
    decode_id: str
    prefill_id: str
    refusal: str | None = None  # why it will not be used, a `kv_transfer.incoming.Refusal`; None: taken
