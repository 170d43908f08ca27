"""A router's /metrics as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Samples:
    samples: list[tuple[str, dict[str, str], float]]

    def value(self, name: str, **labels: str) -> float:
        """The sum over the series of `name` that have `labels`; 0 if there are none."""
        return sum(value for found, had, value in self.samples if found == name and labels.items() <= had.items())


async def scrape(client: httpx.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return Samples([(sample.name, sample.labels, sample.value) for family in families for sample in family.samples])
