"""Processes make their passes in one order, whatever passes each has: tried with threads for processes."""

import random
import threading

import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import lockstep as module
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.lockstep import Lockstep, backward_pass, in_lockstep


class Gathering:
    """`ranks.gather` among threads: everybody waits for everybody."""

    def __init__(self, count):
        self.given = [b""] * count
        self.barrier = threading.Barrier(count, timeout=20)
        self.own = threading.local()

    def __call__(self, content):
        self.given[self.own.number] = content
        self.barrier.wait()
        everything = list(self.given)
        self.barrier.wait()
        return everything


def run(plans, monkeypatch):
    """Let a thread make the passes of each plan; return what each took part in, and whether by its own."""
    gathering = Gathering(len(plans))
    monkeypatch.setattr(ranks, "gather", gathering)
    events = [[] for _ in plans]

    def work(number):
        gathering.own.number = number
        lockstep = Lockstep(lambda turn: events[number].append((turn, "others")), lambda: None)
        for turn in plans[number]:
            lockstep.start(turn)
            events[number].append((turn, "own"))
            lockstep.end()
        lockstep.start("rest")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    return events


def test_any_plans_are_made_in_one_order_by_all(monkeypatch):
    chance = random.Random(0)
    for _ in range(50):
        plans = [
            [
                turn
                for _ in range(chance.randrange(4))
                for turn in ("forward", *["backward"] * chance.randrange(3))
            ]
            for _ in range(chance.randrange(2, 5))
        ]
        events = run(plans, monkeypatch)
        orders = [[turn for turn, _ in each] for each in events]
        assert orders.count(orders[0]) == len(plans)
        assert [[turn for turn, who in each if who == "own"] for each in events] == plans
        # No turn is idle: somebody had a pass of the kind.
        assert all(any(each[i][1] == "own" for each in events) for i in range(len(orders[0])))


def test_equal_plans_need_no_one_to_stand_in(monkeypatch):
    plan = ["forward", "backward", "backward"]
    assert run([plan, plan], monkeypatch) == [[(turn, "own") for turn in plan]] * 2


def test_after_a_pass_that_stopped_half_way_nothing_is_started():
    with in_lockstep(lambda turn: None, lambda: None) as lockstep:
        with pytest.raises(ZeroDivisionError), backward_pass():
            1 / 0  # noqa: B018
        with pytest.raises(InputError, match=r"calibration\.batch_size: 1"):
            lockstep.start("forward")
    assert not module._active


def test_an_exchange_waits_for_all_passes_and_backward_is_told():
    told = []
    with in_lockstep(told.append, lambda: told.append("begins")) as lockstep:
        with backward_pass():
            pass
        assert told == ["begins"]
        lockstep.start("forward")
        with pytest.raises(InputError):  # a pass is under way
            ranks.exchange(b"")
