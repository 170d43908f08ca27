"""What a server says of the model it serves, as far as a measurement has to know: whether it only plays it."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping

import msgspec

from loadgen.client.config import RunConfig

TIMEOUT_S = 5.0


class _Model(msgspec.Struct):
    id: str
    simulated: bool = False  # Diptych's; other servers do not know the field


class _Models(msgspec.Struct):
    data: list[_Model] = []


def is_simulated(config: RunConfig, headers: Mapping[str, str], ca_file: str = "") -> bool | None:
    """Whether the server's /v1/models calls the measured model simulated. None, not known, where it cannot be asked or
    does not list the model; a server that lists it and does not know the word computes.

    Raises:
        OSError: `ca_file` cannot be read (ssl.SSLError is one).
    """
    url = f"{config.base_url.rstrip('/').removesuffix('/v1')}/v1/models"
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file or None)))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=TIMEOUT_S) as response:
            models = msgspec.json.decode(response.read(), type=_Models)
    except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException, msgspec.MsgspecError):
        return None
    said = [model.simulated for model in models.data if model.id == config.model]
    return any(said) if said else None
