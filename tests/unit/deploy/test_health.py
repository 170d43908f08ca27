"""Progress, not a ping: who computes nothing though it could is stuck, and silence alone proves nothing."""

from __future__ import annotations

import msgspec

from deploy.health import Vitals, has_work
from deploy.reconcile import Health
from diptych.messages import WorkerStats

SUSPECT_S, REPLACE_S = 5.0, 15.0


def judge(vitals: Vitals) -> Health:
    return vitals.judge(SUSPECT_S, REPLACE_S)


def hear(vitals: Vitals, seconds: int, steps_per_s: int = 0, **stats: int) -> Health:
    """One report a second."""
    for second in range(1, seconds + 1):
        vitals.age(1.0)
        vitals.heard(WorkerStats(steps_total=second * steps_per_s, **stats))
    return judge(vitals)


def test_a_worker_that_answers_but_makes_no_step_is_lost() -> None:
    vitals = Vitals()
    assert hear(vitals, 5, num_running=1) is Health.OK
    assert hear(vitals, 5, num_running=1) is Health.SUSPECT
    assert hear(vitals, 10, num_running=1) is Health.LOST


def test_one_step_clears_the_suspicion() -> None:
    vitals = Vitals()
    hear(vitals, 10, num_running=1)
    vitals.heard(WorkerStats(num_running=1, steps_total=1))
    assert judge(vitals) is Health.OK


def test_idle_and_busy_workers_are_healthy_for_ever() -> None:
    assert hear(Vitals(), 100) is Health.OK
    assert hear(Vitals(), 100, steps_per_s=1, num_running=1) is Health.OK


def test_what_waits_for_a_peer_is_no_standstill() -> None:
    for field in ("num_loading", "num_held", "blocks_quarantined"):
        stats = msgspec.structs.replace(WorkerStats(num_waiting=3), **{field: 1})
        assert not has_work(stats)
        assert hear(Vitals(), 100, num_waiting=3, **{field: 1}) is Health.OK
    assert hear(Vitals(), 100, num_waiting=3) is Health.LOST


def test_silence_needs_a_second_witness() -> None:
    vitals = Vitals()
    vitals.age(100.0)
    assert judge(vitals) is Health.SUSPECT
    vitals.lapsed = True
    assert judge(vitals) is Health.LOST
    vitals.heard()
    assert judge(vitals) is Health.OK
