"""The `diptych` command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from cyclopts import App, Parameter

import diptych
from deploy.model_store import DEFAULT_MODEL
from deploy.progress import Progress
from deploy.run_folder import RunFolder
from deploy.supervise import supervise

PROMPT = "Explain in three sentences why the sky is blue."

app = App(name="diptych", help="A disaggregated prefill/decode serving cluster.", version=diptych.__version__)


@app.command
def up(
    *,
    model: str = DEFAULT_MODEL,
    served_model: str = "",
    prefill: int = 1,
    decode: int = 1,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 0,
    redis_url: str = "",
    ray_address: str = "",
    cluster: str = "diptych",
    kv_cache_mb: int = 512,
    block_size: int = 16,
    threads: int = 0,
    num_cpus: float = 0.0,
    num_gpus: float = 0.0,
    remote_prefill: str = "auto",
    drain_timeout: float = 30.0,
    otlp_endpoint: str = "",
    prompt: str = PROMPT,
    max_tokens: int = 96,
    start_timeout: float = 180.0,
    once: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Start a whole cluster, ask it one question, and stay until Ctrl-C.

    Parameters
    ----------
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
    redis_url
        An existing Redis (7 or newer) or Valkey; an embedded one when empty.
    ray_address
        An existing Ray cluster (host:port or "auto"); a private one when empty.
    cluster
        Prefix of every Redis key. Two clusters that share a Redis need two.
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
    prompt
        The question asked when everything runs.
    max_tokens
        Of its answer.
    start_timeout
        Seconds from Ray's start until a canary went end to end.
    once
        Stop after the answer.
    """
    fields = {
        "served_model": served_model,
        "cluster": cluster,
        "prefill": prefill,
        "decode": decode,
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "kv_cache_bytes": kv_cache_mb << 20,
        "block_size": block_size,
        "threads": threads,
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "remote_prefill": remote_prefill,
        "drain_timeout_s": drain_timeout,
        "otlp_endpoint": otlp_endpoint,
    }
    progress = Progress()
    folder = RunFolder()

    def run() -> int:
        # Ray reads its settings when it is imported, and nothing may have threads before `supervise` forks.
        from deploy.ray_runtime import private_environment, shared_environment

        os.environ.update(shared_environment() if ray_address else private_environment())
        from deploy.up import UpOptions
        from deploy.up import up as run_up

        options = UpOptions(
            model=model,
            redis_url=redis_url,
            ray_address=ray_address,
            prompt=prompt,
            max_tokens=max_tokens,
            once=once,
            start_timeout_s=start_timeout,
            cluster=fields,
        )
        return run_up(options, folder.path, progress)

    return supervise(run, folder.remove)


@app.command
def version() -> None:
    """Print the version."""
    print(diptych.__version__)


def main() -> None:
    sys.exit(app())


if __name__ == "__main__":
    main()
