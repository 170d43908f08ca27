"""The `diptych` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

import diptych
from deploy.cluster_file import ClusterFileError, read_cluster
from deploy.model_store import DEFAULT_MODEL
from deploy.progress import Progress
from deploy.run_folder import RunFolder
from deploy.supervise import supervise
from deploy.verbs import verbs

PROMPT = "Explain in three sentences why the sky is blue."

app = App(name="diptych", help="A disaggregated prefill/decode serving cluster.", version=diptych.__version__)
for verb in verbs:
    app.command(verb)
# By name: the simulator and the load generator are imported when they are asked for.
app.command("loadgen.planner.cli:plan", name="plan", help="Find the number of workers of each kind for a trace.")
app.command("loadgen.falsify.cli:falsify", name="falsify", help="Measure on a trace whether disaggregation pays.")


@app.command
def up(
    *,
    config: Path | None = None,
    model: str | None = None,
    served_model: str | None = None,
    prefill: int | None = None,
    decode: int | None = None,
    host: str | None = None,
    http_port: int | None = None,
    grpc_port: int | None = None,
    admin_port: int | None = None,
    redis_url: Annotated[str | None, Parameter(env_var="DIPTYCH_REDIS_URL", show_default=False)] = None,
    ray_address: Annotated[str, Parameter(name=["--ray-address", "--address"])] = "",
    cluster: str | None = None,
    kv_cache_mb: int | None = None,
    block_size: int | None = None,
    threads: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    remote_prefill: str | None = None,
    drain_timeout: float | None = None,
    otlp_endpoint: str | None = None,
    engine: Literal["torch", "sim"] | None = None,
    timing: str | None = None,
    speedup: float | None = None,
    sim_cell_bytes: int | None = None,
    sim_kv_tokens: int | None = None,
    insecure_network: Annotated[bool | None, Parameter(negative=())] = None,
    prompt: str = PROMPT,
    max_tokens: int = 96,
    start_timeout: float | None = None,
    once: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Start a whole cluster, ask it one question, and stay until Ctrl-C or `diptych down`.

    What is not given here or in the file has the default of `deploy/cluster_config.py`.

    Parameters
    ----------
    config
        A description of the cluster in TOML (deploy/examples has some); flags override it.
    model
        A Hugging Face model folder (Llama family, safetensors), or the name of the default model.
    served_model
        The name clients use; the folder's name when empty.
    prefill
        Prefill workers.
    decode
        Decode workers.
    host
        Where the HTTP and gRPC doors listen.
    http_port
        Of the OpenAI-compatible door.
    grpc_port
        0 picks a free one.
    admin_port
        Of the admin door, on loopback; 0 picks a free one, which the other commands find.
    redis_url
        An existing Redis (7 or newer) or Valkey; an embedded one when empty. A URL with a password is better given in
        DIPTYCH_REDIS_URL than on the command line.
    ray_address
        An existing Ray cluster (host:port or "auto"); a private one when empty.
    cluster
        Its name, and the prefix of every Redis key. Two clusters that share a Redis need two.
    kv_cache_mb
        Memory for KV blocks, per worker, in MiB.
    block_size
        Tokens a KV block.
    threads
        Of torch, per worker; 0 divides the processors among the workers.
    num_cpus
        What Ray books per worker.
    num_gpus
        What Ray books per worker; more than 0 also runs the model on the GPU.
    remote_prefill
        "auto" decides by estimated time; "always" and "never" are for experiments.
    drain_timeout
        Seconds a worker may finish its requests when told to stop.
    otlp_endpoint
        Where OpenTelemetry spans go; tracing is off when empty.
    engine
        "sim" computes nothing: steps take the time of a timing model, text means nothing, and the model folder needs no
        weights (docs/simulated-engine.md).
    timing
        Of a simulated engine: fixed:prefill_ms=50,decode_ms=10, fit:MODEL/GPU (measured GPUs) or measured:FILE.
    speedup
        Divides the times of a simulated engine.
    sim_cell_bytes
        Memory of a simulated token's KV; 0: what the model's KV takes.
    sim_kv_tokens
        Tokens that a simulated worker's cache holds; 0: as many as the engine that is played would hold.
    insecure_network
        Allow addresses that other machines reach, without TLS and without keys for clients.
    prompt
        The question asked when everything runs.
    max_tokens
        Of its answer.
    start_timeout
        Seconds from Ray's start until a canary went end to end.
    once
        Stop after the answer.
    """
    of_workers = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "options.threads": threads,
        "options.kv_cache_bytes": None if kv_cache_mb is None else kv_cache_mb << 20,
        "options.sim_timing": timing,
        "options.sim_speedup": speedup,
        "options.sim_kv_tokens": sim_kv_tokens,
    }
    flags: dict[str, Any] = {
        "model": model,
        "served_model": served_model,
        "name": cluster,
        "redis_url": redis_url,
        "prefill.count": prefill,
        "decode.count": decode,
        **{f"{pool}.{name}": value for pool in ("prefill", "decode") for name, value in of_workers.items()},
        "router.host": host,
        "router.http_port": http_port,
        "router.grpc_port": grpc_port,
        "router.options.remote_prefill": remote_prefill,
        "admin.port": admin_port,
        "options.block_size": block_size,
        "options.otlp_endpoint": otlp_endpoint,
        "options.engine": engine,
        "options.sim_cell_bytes": sim_cell_bytes,
        "limits.drain_timeout_s": drain_timeout,
        "limits.start_timeout_s": start_timeout,
        "allow_insecure_network": insecure_network,
    }
    progress = Progress()
    try:
        described = read_cluster(config, flags, DEFAULT_MODEL)
    except ClusterFileError as error:
        progress.error(str(error))
        return 1
    folder = RunFolder()

    def run() -> int:
        # Ray reads its settings when it is imported, and nothing may have threads before `supervise` forks.
        from deploy.ray_runtime import private_environment, shared_environment

        os.environ.update(shared_environment(os.environ) if ray_address else private_environment())
        from deploy.up import UpOptions
        from deploy.up import up as run_up

        options = UpOptions(ray_address=ray_address, prompt=prompt, max_tokens=max_tokens, once=once, cluster=described)
        return run_up(options, folder.path, progress)

    return supervise(run, folder.remove)


@app.command
def key(tenant: str, *, file: Path = Path("keys.toml")) -> int:
    """Make a key for a client and print it, once; its digest is added to the file that routers read.

    Parameters
    ----------
    tenant
        Whose it is. Tenants share no cached prefix.
    file
        The `api_keys_file` of the routers; made if it is not there. To withdraw a key, remove its entry.
    """
    from router.keys import key_entry, new_key

    made = new_key()
    try:
        entry = key_entry(tenant, made)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as keys:
            keys.write(entry)
    except (ValueError, OSError) as error:
        Progress().error(str(error))
        return 1
    print(made)
    return 0


@app.command
def version() -> None:
    """Print the version."""
    print(diptych.__version__)


def main() -> None:
    sys.exit(app())


if __name__ == "__main__":
    main()
