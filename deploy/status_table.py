"""A cluster's status as a table of plain text, for people. Pure."""

from __future__ import annotations

from deploy.reconcile import Health, Kind, State
from deploy.status import ClusterStatus, ProcessStatus

HEADER = ("WORKER", "ROLE", "NODE", "PID", "STATE", "RUNNING", "WAITING", "CACHE", "PREFILL", "STEP", "LINK")
NOTHING = "-"


def table(status: ClusterStatus) -> str:
    wanted = ", ".join(f"{count} {kind}" for kind, count in status.wanted.items())
    title = f"{status.name}: {status.model}; wanted {wanted}{'; going down' if status.going_down else ''}"
    rows = [HEADER, *(_row(process) for kind in Kind for process in status.of(kind))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    crashes = [f"{len(status.crashes)} crashes, the last: {_last(status)}"] if status.crashes else []
    return "\n".join([title, *lines, *_autoscale(status), *crashes])


def _autoscale(status: ClusterStatus) -> list[str]:
    """The latest decision, a line for each pool."""
    if (autoscale := status.autoscale) is None:
        return []
    verb = "wants" if autoscale.mode == "on" else "would want"
    lines = [f"autoscale {autoscale.mode}, decided {autoscale.decided_s_ago:.0f} s ago"]
    for kind, pool in autoscale.pools.items():
        bounds = "pinned by scale" if pool.pinned else f"{pool.min} to {pool.max}"
        lines.append(f"  {kind}: {verb} {pool.wanted} ({bounds}), needs {pool.needed}: {pool.reason}")
    return lines


def _row(process: ProcessStatus) -> tuple[str, ...]:
    node = process.hosting.node if process.hosting else NOTHING
    return (process.name, process.kind, node, str(process.pid or NOTHING), _state(process), *_numbers(process))


def _state(process: ProcessStatus) -> str:
    if process.state is State.STOPPING:
        state = "draining" + (f" to {process.becomes}" if process.becomes else "")
    elif process.leaving:
        state = "leaving" + (f" to {process.becomes}" if process.becomes else "")
    else:
        state = "probing" if process.probing else str(process.state)
    return state if process.health is Health.OK else f"{state}, {process.health}"


def _numbers(process: ProcessStatus) -> tuple[str, ...]:
    """Load, cache in blocks (used by requests, reusable, of all), and the speeds it measured about itself."""
    stats = process.stats
    if stats is None:
        return (NOTHING,) * 6
    held = stats.blocks_total - stats.blocks_free - stats.blocks_cached
    return (
        str(stats.num_running),
        str(stats.num_waiting),
        f"{held}+{stats.blocks_cached}/{stats.blocks_total}",
        f"{stats.prefill_tokens_per_s:.0f} tok/s" if stats.prefill_tokens_per_s else NOTHING,
        f"{stats.decode_step_ms:.1f} ms" if stats.decode_step_ms else NOTHING,
        f"{stats.transfer_bytes_per_s / 1e6:.0f} MB/s" if stats.transfer_bytes_per_s else NOTHING,
    )


def _last(status: ClusterStatus) -> str:
    crash = status.crashes[-1]
    reason = (crash.reason.strip() or "no reason known").splitlines()[-1]
    return f"{crash.worker_id or crash.kind}: {reason} (log: {crash.log_path})"
