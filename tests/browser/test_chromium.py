"""Where a browser comes from, and what is said when there is none."""

import pytest

from . import chromium


@pytest.mark.parametrize(
    ("environ", "so"), [({}, False), ({"CI": "true"}, True), ({"CI": "false"}, False), ({"ADABACK_BROWSER": "install"}, True), ({"ADABACK_BROWSER": "no"}, False)]
)
def test_a_browser_is_installed_only_where_asked_for(environ, so):
    assert chromium.wanted(environ) is so


def test_a_failed_install_is_no_failure_and_its_reason_is_kept(tmp_path, monkeypatch, capsys):
    """With an apt-get that cannot reach its server."""
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho no route to deb.debian.org\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(chromium, "LOG", tmp_path / "install.log")
    monkeypatch.setattr(chromium, "NAMES", ("no-such-browser",))
    monkeypatch.setattr(chromium, "PLACES", ())
    monkeypatch.setattr(chromium.os, "geteuid", lambda: 0)
    assert chromium.main() == 0
    assert "no route to deb.debian.org" in chromium.LOG.read_text()
    assert "That failed" in capsys.readouterr().err and str(chromium.LOG) in chromium.why_none()

    (tmp_path / "no-such-browser").write_text("")  # it is there after all, and apt's log need not stay
    (tmp_path / "no-such-browser").chmod(0o755)
    assert chromium.find() == str(tmp_path / "no-such-browser")
    assert chromium.install() and not chromium.LOG.exists()


def test_without_root_nothing_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(chromium, "LOG", tmp_path / "install.log")
    monkeypatch.setattr(chromium.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(chromium.subprocess, "run", lambda *_, **__: pytest.fail("it ran something"))
    assert not chromium.install() and "Not tried" in chromium.LOG.read_text()


def test_nothing_is_installed_unasked(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("ADABACK_BROWSER", raising=False)
    monkeypatch.setattr(chromium, "find", lambda: None)
    monkeypatch.setattr(chromium, "install", lambda: pytest.fail("it installed"))
    assert chromium.main() == 0
    assert "apt install chromium" in chromium.why_none()
