"""A real cluster under its load's rule: a pool grows by a worker, gives it back, and no client notices.

Decode with the tiny model. Prefill with simulated engines in real workers, whose speed is known: what comes is twice
what one of them computes, so it is arithmetic that a second one is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from reference import Reference, random_prompt
from steady_load import Question, SteadyLoad
from tiny_model import make_tiny_model
from up_process import UpProcess, free_port
from waiting import look_until

from deploy.api import Admin
from deploy.reconcile import Kind
from deploy.status import ClusterStatus
from diptych.config import RouterConfig
from diptych.engine.sim.loading import vocabulary_of
from diptych.engine.sim.runner import Chain
from diptych.errors import BadRequest
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder
from kv_transfer.identity import identity_of

EFFECT_TIMEOUT_S = 400.0  # on a busy machine a worker may start for minutes
CLIENTS = 3
# A sequence of a thousand tokens holds some per cent of a worker's blocks: far more than the target.
DESCRIPTION = """
model = "{model}"
name = "autoscale"
[prefill]
count = 1
[prefill.options]
kv_cache_bytes = 8388608
max_batch_tokens = 64
[decode]
count = 1
[decode.options]
kv_cache_bytes = 33554432
[router]
http_port = {port}
[router.options]
silence_ms = 15000
[limits]
drain_timeout_s = 5
start_timeout_s = 240
replace_after_s = 60
[autoscale]
mode = "on"
ttft_ms = 60000
tpot_ms = 60000
kv_target = 0.005
interval_s = 1
down_after_s = 12
stale_after_s = 10
prefill = {{ min = 1, max = 2 }}
decode = {{ min = 1, max = 2 }}
"""


async def until(admin: Admin, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    return await asyncio.to_thread(look_until, admin.status, holds, EFFECT_TIMEOUT_S)


def decodes(count: int) -> Callable[[ClusterStatus], bool]:
    """So many are wanted, run, and are proven."""
    return lambda status: (
        status.complete and status.wanted[Kind.DECODE] == count and status.placeable.get(Kind.DECODE) == count
    )


def reason(status: ClusterStatus) -> str:
    return status.autoscale.pools[Kind.DECODE].reason if status.autoscale else ""


@pytest.mark.slow
async def test_the_decode_pool_grows_with_the_load_and_shrinks_after_it(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    reference = Reference(model)
    prompt = random_prompt(200, 0)
    question = Question(prompt, reference.tokens(prompt, 700))
    port = free_port()
    description = tmp_path / "cluster.toml"
    description.write_text(DESCRIPTION.format(model=model, port=port))
    up = UpProcess(tmp_path, "--config", str(description), "--max-tokens", "8")
    async with up:
        await up.wait_ready()
        with up.admin() as admin:
            load = SteadyLoad(f"http://127.0.0.1:{port}", "tiny", [question], CLIENTS, seed=0)
            async with load:
                # Between two waves of requests nothing runs, and that is then the latest reason.
                status = await until(admin, lambda status: decodes(2)(status) and "blocks" in reason(status))
                up.look()
                assert status.wanted[Kind.PREFILL] == 1
                assert status.autoscale is not None
                assert status.autoscale.pools[Kind.DECODE].start_s != 60.0  # the default: it was measured
                await load.more(2 * CLIENTS)
            await until(admin, decodes(1))
            with pytest.raises(BadRequest):
                await asyncio.to_thread(admin.scale, router="auto")
            await asyncio.to_thread(admin.scale, decode=2)
            status = await asyncio.to_thread(admin.status)
            assert status.autoscale is not None
            assert status.crashes == []
            await asyncio.to_thread(admin.scale, decode="auto")
            await until(admin, decodes(1))
            assert load.seen.errors == []
            await asyncio.to_thread(admin.down)


CELL_BYTES = 64
PROMPT_TOKENS, NUM_PROMPTS = 400, 300  # 0.4 s each on a prefill worker, and far more than its cache keeps
SIMULATED = """
model = "{model}"
served_model = "tiny"
name = "autoscale-prefill"
[options]
engine = "sim"
sim_cell_bytes = {cell_bytes}
[prefill]
count = 1
[prefill.options]
sim_timing = "fixed:prefill_ms=1,decode_ms=20,prefill_us_per_token=1000"
sim_kv_tokens = 8192
[decode]
count = 1
[decode.options]
sim_timing = "fixed:prefill_ms=1,decode_ms=5,prefill_us_per_token=1000"
sim_kv_tokens = 16384
[router]
http_port = {port}
[router.options]
silence_ms = 15000
remote_prefill = "always"
[limits]
drain_timeout_s = 5
start_timeout_s = 240
replace_after_s = 60
[autoscale]
mode = "{mode}"
ttft_ms = 1000
tpot_ms = 60000
interval_s = 1
down_after_s = 10
down_after_most_s = 10
stale_after_s = 10
prefill = {{ min = 1, max = 2 }}
decode = {{ min = 1, max = 1 }}
"""


def simulated_questions(model: Path) -> list[Question]:
    told = RouterConfig(model=str(model), served_model="tiny", engine="sim", sim_cell_bytes=CELL_BYTES)
    folder = ModelFolder(model)
    chain = Chain(identity_of(folder, told).fingerprint, CELL_BYTES, vocabulary_of(folder.spec))
    sampling = SamplingParams(max_tokens=4, seed=0, temperature=0.0)
    prompts = [random_prompt(PROMPT_TOKENS, seed) for seed in range(NUM_PROMPTS)]
    return [Question(prompt, chain.reference(prompt, sampling)) for prompt in prompts]


@asynccontextmanager
async def simulated(folder: Path, mode: str) -> AsyncIterator[tuple[UpProcess, Admin, SteadyLoad]]:
    """A cluster of one prefill and one decode worker, and a load that begins when it is entered."""
    model, port = make_tiny_model(folder / "tiny"), free_port()
    description = folder / "cluster.toml"
    description.write_text(SIMULATED.format(model=model, cell_bytes=CELL_BYTES, port=port, mode=mode))
    up = UpProcess(folder, "--config", str(description), "--max-tokens", "8")
    async with up:
        await up.wait_ready()
        with up.admin() as admin:
            yield up, admin, SteadyLoad(f"http://127.0.0.1:{port}", "tiny", simulated_questions(model), 6, seed=0)
            await asyncio.to_thread(admin.down)


def prefills(count: int) -> Callable[[ClusterStatus], bool]:
    return lambda status: (
        status.complete and status.wanted[Kind.PREFILL] == count and status.placeable.get(Kind.PREFILL) == count
    )


def would_have(count: int) -> Callable[[ClusterStatus], bool]:
    return lambda status: status.autoscale is not None and status.autoscale.pools[Kind.PREFILL].wanted == count


@pytest.mark.slow
async def test_the_prefill_pool_grows_with_its_queue_and_shrinks_after_it(tmp_path: Path) -> None:
    async with simulated(tmp_path, "on") as (up, admin, load):
        async with load:
            status = await until(admin, prefills(2))
            up.look()
            assert status.autoscale is not None
            assert "prompts would wait" in status.autoscale.pools[Kind.PREFILL].reason
            await load.more(20)
        await until(admin, prefills(1))
        assert load.seen.num_requests > 20
        assert load.seen.errors == []


@pytest.mark.slow
async def test_advice_is_given_and_nothing_done(tmp_path: Path) -> None:
    async with simulated(tmp_path, "advise") as (up, admin, load):
        async with load:
            status = await until(admin, would_have(2))
            assert status.wanted[Kind.PREFILL] == 1
            await load.more(20)
            assert prefills(1)(await asyncio.to_thread(admin.status))
        await until(admin, would_have(1))
        assert prefills(1)(await asyncio.to_thread(admin.status))
        assert load.seen.errors == []
        up.look()
