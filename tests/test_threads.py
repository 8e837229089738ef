"""Threads: the order of the items, a bounded number under way, and errors that come through."""

import threading

import pytest

from histoquant import threads
from histoquant.threads import in_order


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_results_come_in_the_order_of_the_items(monkeypatch, cores):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    later = threading.Event()

    def work(item):
        if item == 0 and cores > 1:
            assert later.wait(60)  # the first is done last
        elif item == 1:
            later.set()
        return item * item

    assert list(in_order(work, range(50))) == [item * item for item in range(50)]
    assert list(in_order(work, [])) == []


@pytest.mark.parametrize("cores", [1, 3, 16])
def test_no_more_is_under_way_than_one_for_each_thread_and_one(monkeypatch, cores):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    begun = []
    results = in_order(begun.append, range(100))
    for taken in range(1, 101):
        next(results)
        assert len(begun) <= taken + min(cores, threads.MOST_THREADS) + 1
    assert len(begun) == 100


@pytest.mark.parametrize("cores", [1, 4])
def test_an_error_comes_through_and_ends_the_rest(monkeypatch, cores):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        list(in_order(work, range(1000)))
    assert len(begun) < 20
