from threading import get_ident

import numpy as np
import pytest

from microumup.cpu import Threads, cores


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_share_is_worked_off_once_and_in_a_thread_of_its_own(n):
    threads = Threads(n)
    found = threads.run(lambda i: (i, get_ident()))
    assert [i for i, _ in found] == list(range(n))
    assert found[0][1] == get_ident()
    assert (found[-1][1] == get_ident()) == (n == 1)


@pytest.mark.parametrize(("size", "n"), [(16, 1), (16, 3), (2, 5), (0, 2)])
def test_shares_are_all_of_it_without_overlap_and_nearly_equal(size, n):
    shares = [range(size)[Threads(n).share(size, i)] for i in range(n)]
    assert [j for share in shares for j in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_things_are_dealt_to_all_in_turn():
    assert [list(Threads(3).deal("abcdefg", i)) for i in range(3)] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


def test_what_a_share_raises_is_raised_in_the_caller():
    def work(i):
        if i == 1:
            raise ValueError("share 1")

    with pytest.raises(ValueError, match="share 1"):
        Threads(3).run(work)


def test_errstate_of_the_caller_holds_in_every_thread():
    def overflow(i):
        return np.float32(1e38) * np.float32(10)

    with np.errstate(over="ignore"):
        assert Threads(2).run(overflow) == [np.inf, np.inf]
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        Threads(2).run(overflow)


def test_there_is_at_least_one_core():
    assert cores() >= 1
