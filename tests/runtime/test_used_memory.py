"""Memory in words."""

from inc_mp_plugin.runtime import used_memory as module


def test_by_hand(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text(
        "Name:\tpython\nGroups:\t \nRssAnon:\t 1171875 kB\nRssFile:\t  250000 kB\nRssShmem:\t0 kB\n"
    )
    monkeypatch.setattr(module, "_STATUS", status)
    assert module.used_memory() == "1.20 GB, and 0.26 GB of mapped files"


def test_where_it_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_STATUS", tmp_path / "nothing")
    assert module.used_memory() == ""
    (tmp_path / "other").write_text("VmRSS:\t12 kB\n")
    monkeypatch.setattr(module, "_STATUS", tmp_path / "other")
    assert module.used_memory() == ""
