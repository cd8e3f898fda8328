"""What the tests of INC's flows share: a folder of their own, in which `ip_mse` is known to INC."""

import pytest

import inc_mp_plugin as mp


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """INC knows `ip_mse`, and writes its measurements into a temporary folder."""
    monkeypatch.chdir(tmp_path)  # INC writes to ./hqt_output
    mp.register()
