"""The shell around placement, on a fleet whose links lead nowhere."""

from __future__ import annotations

import pytest
from placing import World

from diptych.errors import LegFailed, NoCapacity
from router.attempts import Attempts
from router.requests import Report


async def test_what_is_chosen_is_booked_and_believed_before_anybody_else_is_placed() -> None:
    world = World("prefill-1", "prefill-2", "decode-1")
    request, hashes = world.request()
    first = await world.placer.place(request, hashes, Attempts(3), report := Report())
    assert world.bookings.load(first.placement.prefill_id).tokens == 100
    assert world.bookings.load("decode-1") == (0, 1, 7)
    assert (report.prefill_id, report.decode_id) == (first.placement.prefill_id, "decode-1")
    second = await world.placer.place(*world.request("other", seed=1), Attempts(3), Report())
    assert second.placement.prefill_id != first.placement.prefill_id
    third = await world.placer.place(*world.request("same"), Attempts(3), Report())
    assert third.placement.prefill_id == first.placement.prefill_id
    assert third.placement.predicted_cached == 96
    for booked in (first, second, third):
        booked.booking.release()
    assert world.bookings.total == 0


async def test_the_failure_of_an_attempt_is_told_where_nobody_is_left() -> None:
    world = World("decode-1")
    attempts = Attempts(3)
    attempts.failed(LegFailed("it was lost"), ("", "decode-1"), "decode-1", set())
    with pytest.raises(LegFailed, match="it was lost"):
        await world.placer.place(*world.request(), attempts, Report())
    with pytest.raises(NoCapacity):
        await World("prefill-1").placer.place(*world.request(), Attempts(3), Report())


async def test_a_suspect_pair_is_avoided_and_a_canary_tries_it() -> None:
    world = World("prefill-1", "decode-1")
    request, hashes = world.request()
    world.suspects.suspect(("prefill-1", "decode-1"), now=1e12)
    placed = await world.placer.place(request, hashes, Attempts(3), Report())
    assert placed.placement.reason == "transfer_suspect"
    canary, hashes = world.request("canary", canary=True)
    placed = await world.placer.place(canary, hashes, Attempts(3), Report())
    assert placed.placement.prefill_id == "prefill-1"


async def test_a_canary_leaves_no_trace() -> None:
    world = World("prefill-1", "decode-1")
    canary, hashes = world.request("canary", canary=True)
    await world.placer.place(canary, hashes, Attempts(3), report := Report())
    world.placer.ended(canary, report, None)
    assert len(world.ring) == 0
    assert world.registry.get_sample_value("diptych_placements_total", {"model_name": "tiny"}) == 0


def test_the_crossover_is_of_the_fleet_as_it_is() -> None:
    assert World("prefill-1", "decode-1").placer.crossover() == 1  # nothing has measured a transfer: nothing to save
    assert World("decode-1").placer.crossover() == float("inf")
    with pytest.raises(NoCapacity):
        World().placer.crossover()
