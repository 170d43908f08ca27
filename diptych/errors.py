"""Everything that can go wrong for a caller, as one tree with one table to HTTP and gRPC.

    DiptychError
    ├── BadRequest               400  the request itself is wrong; `param` names the field
    │   └── PromptTooLong             prompt + max_tokens can never fit; the message has both numbers
    ├── Unauthorized             401
    ├── ModelNotFound            404
    ├── PayloadTooLarge          413
    ├── RateLimited              429  carries retry_after_s
    ├── Cancelled                499  the client went away or aborted
    ├── InternalError            500
    ├── LegFailed                502  a worker died or refused in the middle of a request
    │   └── Incompatible              two processes disagree on model, dtype, layout, block size or hash scheme
    ├── NoCapacity               503  carries retry_after_s
    │   └── Draining                      this worker takes nothing new; another may
    └── DeadlineExceeded         504

Messages say what, why and the fix; they never contain prompt or output text.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class WireError(msgspec.Struct, frozen=True, array_like=True):
    """An error as it crosses a process boundary."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class DiptychError(Exception):
    """Base of every error a caller may see. Subclasses fix the four columns of the table."""

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    openai_type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def to_wire(self) -> WireError:
        return WireError(self.code, self.message, self.param, self.retry_after_s)


class BadRequest(DiptychError):
    http_status, grpc_status, openai_type, code = 400, "INVALID_ARGUMENT", "invalid_request_error", "invalid_value"


class PromptTooLong(BadRequest):
    code = "context_length_exceeded"


class Unauthorized(DiptychError):
    http_status, grpc_status, openai_type, code = 401, "UNAUTHENTICATED", "authentication_error", "invalid_api_key"


class ModelNotFound(DiptychError):
    http_status, grpc_status, openai_type, code = 404, "NOT_FOUND", "invalid_request_error", "model_not_found"


class PayloadTooLarge(DiptychError):
    http_status, grpc_status, openai_type, code = 413, "INVALID_ARGUMENT", "invalid_request_error", "payload_too_large"


class RateLimited(DiptychError):
    http_status, grpc_status, openai_type, code = 429, "RESOURCE_EXHAUSTED", "rate_limit_error", "rate_limit_exceeded"


class Cancelled(DiptychError):
    http_status, grpc_status, openai_type, code = 499, "CANCELLED", "invalid_request_error", "cancelled"


class InternalError(DiptychError):
    http_status, grpc_status, openai_type, code = 500, "INTERNAL", "server_error", "internal_error"


class LegFailed(DiptychError):
    http_status, grpc_status, openai_type, code = 502, "UNAVAILABLE", "server_error", "leg_failed"


class Incompatible(LegFailed):
    grpc_status, code = "FAILED_PRECONDITION", "incompatible"


class NoCapacity(DiptychError):
    http_status, grpc_status, openai_type, code = 503, "UNAVAILABLE", "overloaded_error", "no_capacity"


class Draining(NoCapacity):
    code = "draining"


class DeadlineExceeded(DiptychError):
    http_status, grpc_status, openai_type, code = 504, "DEADLINE_EXCEEDED", "server_error", "deadline_exceeded"


ALL_ERRORS: tuple[type[DiptychError], ...] = (
    BadRequest,
    PromptTooLong,
    Unauthorized,
    ModelNotFound,
    PayloadTooLarge,
    RateLimited,
    Cancelled,
    InternalError,
    LegFailed,
    Incompatible,
    NoCapacity,
    Draining,
    DeadlineExceeded,
)
_BY_CODE = {error.code: error for error in ALL_ERRORS}


def from_wire(wire: WireError) -> DiptychError:
    """Rebuild the error another process reported; an unknown code becomes `InternalError`."""
    kind = _BY_CODE.get(wire.code, InternalError)
    return kind(wire.message, param=wire.param, retry_after_s=wire.retry_after_s)
