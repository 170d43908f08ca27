"""Runs one of our processes on its own: configuration as JSON in, one line of JSON out when it is ready.

    python -m decode_worker '{"role": "decode", "model": "/models/x", …}'

SIGTERM and SIGINT drain and stop it; the exit code is 1, with the reason on stderr, if it could not start or failed.
Whoever starts processes in another way (Ray) calls the same `run` functions and does not need this module.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import uvloop

from diptych.errors import DiptychError

Config = TypeVar("Config", bound=msgspec.Struct)
Record = TypeVar("Record", bound=msgspec.Struct)
Run = Callable[[Config, Callable[[Record], None], asyncio.Event], Awaitable[None]]


def main(run: Run[Config, Record], config_type: type[Config]) -> int:
    """Parse the one argument, run until told to stop; returns the exit code."""
    if len(sys.argv) != 2:
        print(f"usage: python -m PROCESS 'JSON of {config_type.__name__}'", file=sys.stderr)
        return 2
    try:
        config = msgspec.json.decode(sys.argv[1], type=config_type)
        uvloop.run(_run(run, config))
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, DiptychError, OSError) as error:
        print(f"{config_type.__name__}: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(run: Run[Config, Record], config: Config) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(config, _print, stop)


def _print(record: msgspec.Struct) -> None:
    print(msgspec.json.encode(record).decode(), flush=True)
