"""Asks a running cluster one chat question through its HTTP door, as any client would, and measures the answer."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

ASK_TIMEOUT_S = 300.0


class AskError(Exception):
    """There was no whole answer; the message says why."""


@dataclass
class Answer:
    """What the client saw, and what the cluster says about how it was made (`return_report` of the HTTP door)."""

    ttft_ms: float = 0.0
    last_ms: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return int(self.usage.get("completion_tokens", 0))

    @property
    def inter_token_ms(self) -> float:
        """Mean, as the client saw it; 0 for a single token."""
        return (self.last_ms - self.ttft_ms) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0


def chat_body(model: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }


def ask(
    base_url: str,
    body: dict[str, Any],
    write: Callable[[str], None],
    key: str = "",
    verify: ssl.SSLContext | bool = True,
) -> Answer:
    """Stream one answer; `write` gets its text as it arrives.

    Args:
        key: of a client; "": none is shown.
        verify: which certificates are trusted.

    Raises:
        AskError: the door refused, the stream broke off, or it carried an error.
    """
    body = body | {"stream_options": {"include_usage": True}, "return_report": True}
    answer = Answer()
    began_s = time.monotonic()
    try:
        with httpx.stream(
            "POST",
            f"{base_url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=ASK_TIMEOUT_S,
            trust_env=False,
            verify=verify,
        ) as response:
            if response.status_code != 200:
                raise AskError(f"HTTP {response.status_code}: {response.read().decode(errors='replace')}")
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return answer
                if line.startswith("data: "):
                    _take(answer, msgspec.json.decode(line[6:]), (time.monotonic() - began_s) * 1e3, write)
    except httpx.HTTPError as error:
        raise AskError(f"the connection failed: {error}") from error
    raise AskError("the stream broke off before its end")


def _take(answer: Answer, chunk: dict[str, Any], now_ms: float, write: Callable[[str], None]) -> None:
    if "error" in chunk:
        raise AskError(chunk["error"].get("message", "unknown error"))
    for choice in chunk.get("choices", ()):
        text = choice["delta"].get("content")
        if text:
            answer.ttft_ms = answer.ttft_ms or now_ms
            answer.last_ms = now_ms
            write(text)
    answer.usage = chunk.get("usage") or answer.usage
    answer.report = chunk.get("diptych") or answer.report


def summary(answer: Answer) -> list[str]:
    """Which worker did what, what was moved, and how long it took, as lines."""
    report = answer.report
    lines = []
    for worker, tokens in report.get("prompt_tokens", {}).items():
        did = ", ".join(f"{count} {source}" for source, count in tokens.items() if count) or "none"
        generated = f"; {answer.num_tokens} tokens generated" if worker == report.get("decode_worker") else ""
        lines.append(f"{worker:<36} prompt tokens: {did}{generated}")
    if report.get("prefill_worker"):
        lines.append(
            f"{'KV transfer':<36} {report['transfer_bytes']:,} bytes in {report['transfer_ms']:.1f} ms; "
            f"ready {report['exposed_ms']:.1f} ms after prefill's last token"
        )
    elif report:
        lines.append(f"{'KV transfer':<36} none, decode computed the prompt itself: {report['reason']}")
    lines.append(f"{'time to first token':<36} {answer.ttft_ms:.0f} ms")
    lines.append(f"{'inter-token latency':<36} {answer.inter_token_ms:.1f} ms (mean of {answer.num_tokens} tokens)")
    return lines
