"""One thread writes, one reads ahead: order, bounds and errors."""

import threading
import time

import pytest

from panoda.system.background import BackgroundWriter, read_ahead


def test_calls_are_carried_out_in_order_in_another_thread():
    seen: list[tuple[int, bool]] = []
    with BackgroundWriter() as writer:
        for number in range(50):
            writer.submit(
                lambda n: seen.append((n, threading.current_thread().name.startswith("writer"))), number
            )
    assert seen == [(number, True) for number in range(50)]


def test_a_full_queue_makes_the_producer_wait():
    gate, submitted = threading.Event(), []
    with BackgroundWriter(depth=1) as writer:

        def produce() -> None:
            for number in range(5):
                writer.submit(gate.wait, 10)
                submitted.append(number)

        thread = threading.Thread(target=produce)
        thread.start()
        time.sleep(0.2)
        assert len(submitted) <= 2  # one under way, one waiting
        gate.set()
        thread.join()
    assert submitted == list(range(5))


def test_the_first_error_surfaces_and_later_calls_are_dropped():
    seen: list[int] = []

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        with BackgroundWriter(depth=8) as writer:
            writer.submit(fail)
            writer.submit(seen.append, 1)
    assert seen == []
    with pytest.raises(OSError, match="disk full"), BackgroundWriter() as writer:
        writer.submit(fail)
        for _ in range(1000):
            writer.submit(time.sleep, 0)
        pytest.fail("submit must raise what went wrong before")


def test_an_error_of_the_body_wins():
    with pytest.raises(KeyError), BackgroundWriter() as writer:
        writer.submit(time.sleep, 0.01)
        raise KeyError
    assert not any(thread.name.startswith("writer") for thread in threading.enumerate())


def test_reading_ahead_keeps_order_and_is_bounded():
    fetched: list[int] = []

    def source():
        for number in range(10):
            fetched.append(number)
            yield number

    stream = read_ahead(source(), depth=2)
    assert next(stream) == 0
    time.sleep(0.2)
    assert 2 <= len(fetched) <= 4
    assert list(stream) == list(range(1, 10))


def test_an_error_comes_where_its_item_would_have_come():
    def source():
        yield 1
        raise ValueError("bad item")

    stream = read_ahead(source())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="bad item"):
        next(stream)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    stream = read_ahead(iter(range(1000)))
    next(stream)
    stream.close()
    assert threading.active_count() == before
