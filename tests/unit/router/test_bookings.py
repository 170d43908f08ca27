from hypothesis import given
from hypothesis import strategies as st

from router.bookings import Bookings
from router.placement import Placement


def placement(prefill: str, decode: str, cached: int = 0) -> Placement:
    return Placement(prefill, decode, 1.0, cached, "test")


def test_a_booking_holds_what_the_request_will_use_and_gives_all_of_it_back() -> None:
    bookings = Bookings()
    booking = bookings.book(placement("p", "d", cached=16), num_tokens=100, num_blocks=7)
    assert (bookings.tokens["p"], bookings.sequences["d"], bookings.blocks["d"]) == (84, 1, 7)
    booking.prefilled()
    assert (bookings.tokens["p"], bookings.sequences["d"]) == (0, 1)
    booking.release()
    booking.release()  # at the deadline and at the end, say: it does not give back twice
    assert bookings.total == 0


@given(st.lists(st.tuples(st.sampled_from(["", "p0", "p1"]), st.sampled_from(["d0", "d1"]), st.booleans())))
def test_nothing_is_left_whatever_overlapped(requests: list[tuple[str, str, bool]]) -> None:
    bookings = Bookings()
    held = []
    for prefill, decode, prefilled in requests:
        booking = bookings.book(placement(prefill, decode), 20, 2)
        held.append(booking)
        if prefilled:
            booking.prefilled()
    assert bookings.total == sum(3 if prefilled else 23 for *_, prefilled in requests)
    for booking in held:
        booking.release()
    assert bookings.total == 0
    assert [*bookings.tokens, *bookings.sequences, *bookings.blocks] == []


def test_whose_load_has_changed_is_told_once() -> None:
    bookings = Bookings()
    booking = bookings.book(placement("p", "d"), num_tokens=100, num_blocks=7)
    assert bookings.take_changed() == {"p", "d"}
    assert bookings.take_changed() == set()
    booking.prefilled()
    booking.prefilled()
    assert bookings.take_changed() == {"p"}
    booking.release()
    assert bookings.take_changed() == {"d"}
    assert bookings.load("d") == (0, 0, 0)
