"""From tokens to text: runs the core for one call of a client and yields what each choice adds. Used by both doors.

Here a stop string ends a choice, completion tokens are counted, and each prompt's run is measured. Doors only render.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from diptych.errors import Cancelled, DiptychError, InternalError
from router.frontend import Frontend
from router.merge import merge
from router.metrics import OK
from router.prompt_run import ChoiceEvent, PromptRun
from router.requests import TokenRequest
from router.text_request import TextRequest
from router.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int  # once per prompt, not per choice or leg
    completion_tokens: int
    cached_tokens: int


class Generation:
    """The run of one `TextRequest`. `events` may be iterated once; closing it cancels everything."""

    def __init__(self, frontend: Frontend, request: TextRequest) -> None:
        self._frontend = frontend
        self.request = request
        self.runs = [self._prepare(prompt, i) for i, prompt in enumerate(request.prompts)]

    def events(self) -> AsyncGenerator[ChoiceEvent, None]:
        """Raises what the core raises; otherwise every choice ends with exactly one finish reason."""
        if len(self.runs) == 1:
            return self._run(self.runs[0])
        return merge([self._run(run) for run in self.runs])

    @property
    def ended(self) -> bool:
        """Every choice has its finish reason: the event just given was the last one."""
        return all(run.ended for run in self.runs)

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=sum(len(run.request.prompt) for run in self.runs),
            completion_tokens=sum(run.num_tokens for run in self.runs),
            cached_tokens=sum(run.report.cached_tokens for run in self.runs),
        )

    def _prepare(self, prompt: TokenRequest, index: int) -> PromptRun:
        n = prompt.sampling.n
        streams = [TextStream(self._frontend.tokenizer.detokenizer(), self.request.stop) for _ in range(n)]
        return PromptRun(prompt, streams, first_index=index * n, arrived_at=self.request.arrived)

    async def _run(self, run: PromptRun) -> AsyncGenerator[ChoiceEvent, None]:
        clock = self._frontend.clock
        outcome = Cancelled.code  # unless it ends by itself, the client closed it
        try:
            async with aclosing(self._frontend.core.generate(run.request, run.report)) as updates:
                async for update in updates:
                    event = run.apply(update, clock())
                    if event is not None:
                        yield event
                    if run.ended and run.stopped_by_text:
                        break  # the core does not know that we are done; closing its stream tells it
            run.check_ended()
            outcome = OK
        except DiptychError as error:
            outcome = error.code
            raise
        except Exception:
            outcome = InternalError.code
            raise
        finally:
            self._frontend.metrics.observe(run.record(outcome, clock()))
