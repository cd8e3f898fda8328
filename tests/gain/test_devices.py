"""Every device keeps the same promise: nothing is left to do when the clock is read."""

import sys
import types

import pytest
import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.gain.devices import CPU, CUDA, DEVICES, HPU, get_device


class Machine:
    """A device that works through a queue: launching takes 1 s, the work itself 10 s, waiting the rest."""

    def __init__(self):
        self.now, self.busy_until, self.collected, self.log = 0.0, 0.0, 0.0, []

    def clock(self):
        return self.now

    def launch(self, seconds=10.0):
        """Work that starts at once, behind what is queued."""
        self.log.append("work")
        self.now += 1.0
        self.busy_until = max(self.now, self.busy_until) + seconds

    def collect(self, seconds=10.0):
        """Work that is only collected until it is sent off, as a Gaudi's lazy mode does."""
        self.log.append("work")
        self.now += 1.0
        self.collected += seconds

    def mark_step(self):
        self.log.append("mark")
        if self.collected:
            self.busy_until = max(self.now, self.busy_until) + self.collected
            self.collected = 0.0

    def synchronize(self):
        self.log.append("wait")
        self.now = max(self.now, self.busy_until)


class Event:
    """An event of a stream: the time at which the work before it is done."""

    def __init__(self, machine):
        self.machine = machine

    def record(self):
        self.time = max(self.machine.now, self.machine.busy_until)

    def elapsed_time(self, other):
        assert self.machine.now >= self.machine.busy_until, "read before the device was idle"
        return 1e3 * (other.time - self.time)


def on_cpu(machine, monkeypatch):
    del monkeypatch

    def work():
        machine.launch()
        machine.synchronize()

    return CPU(machine.clock), work


def on_cuda(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", machine.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(machine))
    return CUDA(), machine.launch


def on_hpu(machine, monkeypatch):
    hpu = types.SimpleNamespace(
        is_available=lambda: True, get_device_name=lambda: "GAUDI2", synchronize=machine.synchronize
    )
    core = types.ModuleType("habana_frameworks.torch.core")
    core.mark_step = machine.mark_step
    habana = types.ModuleType("habana_frameworks.torch")
    habana.hpu, habana.core = hpu, core
    package = types.ModuleType("habana_frameworks")
    package.torch = habana
    for module in (package, habana, core):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return HPU(machine.clock), machine.collect


@pytest.fixture(params=[on_cpu, on_cuda, on_hpu])
def made(request, monkeypatch):
    machine = Machine()
    device, work = request.param(machine, monkeypatch)
    return machine, device, work


def test_a_call_is_timed_to_the_end_of_its_work(made):
    _, device, work = made
    assert 10.0 <= device.seconds(work) <= 11.0


def test_work_of_an_earlier_call_is_not_counted(made):
    _, device, work = made
    work()
    assert 10.0 <= device.seconds(work) <= 11.0


def test_two_calls_take_twice_as_long(made):
    _, device, work = made

    def twice():
        work()
        work()

    assert device.seconds(twice) == pytest.approx(2 * device.seconds(work), abs=1.0)


def test_it_says_what_it_is(made):
    _, device, _ = made
    assert device.name in DEVICES
    assert device.description
    assert device.static_shapes == (device.name == "hpu")


def test_a_gaudi_is_sent_its_work_before_it_is_waited_for(monkeypatch):
    machine = Machine()
    device, work = on_hpu(machine, monkeypatch)
    device.seconds(work)
    assert machine.log == ["mark", "wait", "work", "mark", "wait"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_one_clear_line():
    with pytest.raises(InputError, match="'cuda', but torch finds no CUDA device here; give 'cpu'"):
        get_device("cuda")


def test_a_missing_gaudi_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "habana_frameworks", None)
    with pytest.raises(InputError, match="'hpu', but habana_frameworks is not installed here"):
        get_device("hpu")
    on_hpu(Machine(), monkeypatch)
    monkeypatch.setattr(sys.modules["habana_frameworks.torch"].hpu, "is_available", lambda: False)
    with pytest.raises(InputError, match="'hpu', but habana_frameworks finds no Gaudi"):
        get_device("hpu")


def test_an_unknown_device():
    with pytest.raises(InputError, match="unknown timing device 'cud'; did you mean 'cuda'"):
        get_device("cud")
