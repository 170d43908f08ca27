from router.sharing.breaker import QUICK_ANSWERS, Breaker


def test_one_failure_opens_it_and_only_several_quick_answers_in_a_row_close_it() -> None:
    breaker = Breaker(limit_s=0.004)
    assert breaker.reason == ""
    breaker.failed("timeout")
    breaker.failed("unreachable")
    assert breaker.reason == "unreachable"
    for took_s in [0.001] * (QUICK_ANSWERS - 1) + [0.005] + [0.001] * (QUICK_ANSWERS - 1):
        breaker.answered(took_s)
        assert breaker.reason == "unreachable"
    breaker.answered(0.004)
    assert breaker.reason == ""


def test_a_slow_answer_to_the_background_alone_opens_nothing() -> None:
    breaker = Breaker(limit_s=0.004)
    breaker.answered(1.0)
    assert breaker.reason == ""
