"""What a server says of the model it serves, as far as a measurement has to know: whether it only plays it."""

from __future__ import annotations

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


def is_simulated(config: RunConfig, headers: Mapping[str, str]) -> bool:
    """Whether the server's /v1/models calls the measured model simulated. Whoever does not answer says no."""
    url = f"{config.base_url.rstrip('/').removesuffix('/v1')}/v1/models"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=TIMEOUT_S) as response:
            models = msgspec.json.decode(response.read(), type=_Models)
    except (OSError, ValueError, urllib.error.URLError, msgspec.MsgspecError):
        return False
    return any(model.simulated for model in models.data if model.id == config.model)
