"""The layer of the HTTP door that lets in who has a key; see `keys`."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from diptych.errors import Unauthorized
from router.keys import Keys

OPEN = frozenset(("/live", "/health"))  # for load balancers and for whoever supervises this process


class KeyLayer:
    """Pure ASGI middleware: notes the tenant in the request's state, or raises `Unauthorized` before a body is read."""

    def __init__(self, app: ASGIApp, keys: Keys, refused: Callable[[str], None]) -> None:
        """
        Args:
            refused: told the error's code of every request that is not let in.
        """
        self._app = app
        self._keys = keys
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            authorization = Headers(scope=scope).get("authorization", "")
            try:
                scope.setdefault("state", {})["tenant"] = self._keys.tenant_of(authorization)
            except Unauthorized as error:
                self._refused(error.code)
                raise
        await self._app(scope, receive, send)
