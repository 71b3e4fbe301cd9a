import socket
import time
import urllib.request
from pathlib import Path

import pytest

from qattrain.data import mnist as mirrors
from qattrain.data.mnist import first_answer, stall_timeout

REFUSING = "http://127.0.0.1:1/"


def test_a_probe_may_take_five_seconds() -> None:
    assert mirrors.PROBE_SECONDS == 5


def test_a_silent_mirror_is_given_up_in_time(silent_mirror: str) -> None:
    begin = time.monotonic()
    assert first_answer([silent_mirror, silent_mirror, silent_mirror], 0.4) is None
    assert 0.3 < time.monotonic() - begin < 2


def test_a_name_server_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_ask", lambda *_: time.sleep(1.5))
    begin = time.monotonic()
    assert first_answer(["http://mirror.invalid/"], 0.2) is None
    assert time.monotonic() - begin < 1.2


@pytest.mark.parametrize("url", [REFUSING, "http://127.0.0.1:port/", "no address"])
def test_a_refusing_or_impossible_mirror_is_no_answer_and_no_wait(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    begin = time.monotonic()
    assert first_answer([url], 5) is None
    assert time.monotonic() - begin < 2


def test_an_error_status_is_no_answer(served: tuple[str, Path]) -> None:
    assert first_answer([served[0] + "absent"], 5) is None


def test_the_first_mirror_to_answer_is_named_without_waiting_for_the_others(
    served: tuple[str, Path], silent_mirror: str
) -> None:
    (served[1] / "file").write_bytes(b"content")
    url = served[0] + "file"
    begin = time.monotonic()
    assert first_answer([silent_mirror, REFUSING, url], 4) == url
    assert time.monotonic() - begin < 3


def test_a_proxy_of_the_environment_is_asked(served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", served[0])
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib reads the proxies once per process
    (served[1] / "http:" / "mirror.invalid").mkdir(parents=True)
    (served[1] / "http:" / "mirror.invalid" / "file").write_bytes(b"content")
    assert first_answer(["http://mirror.invalid/file"], 5) == "http://mirror.invalid/file"


def test_stall_timeout_ends_with_its_block_also_after_an_error() -> None:
    before = socket.getdefaulttimeout()
    with stall_timeout():
        assert socket.getdefaulttimeout() == mirrors.STALL_SECONDS
    assert socket.getdefaulttimeout() == before
    with pytest.raises(OSError, match="broken"), stall_timeout():
        raise OSError("broken")
    assert socket.getdefaulttimeout() == before
