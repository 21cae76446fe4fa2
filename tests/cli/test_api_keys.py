"""API keys go to the server that they are for and appear in no output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rank_k.cli.model_options import api_key
from tests.cli.helpers import KEY, RERANK, RankK, error_line, server_options
from tests.conftest import StartLoopback

pytestmark = pytest.mark.integration


def read_all_files(collection_folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in collection_folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("variable", "option"), [("RANK_K_API_KEY", ()), ("MY_KEY", ("--api-key-env", "MY_KEY"))])
def test_api_key_is_sent_to_the_server_and_never_written(
    collection_folder: Path,
    rank_k: RankK,
    loopback: StartLoopback,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    option: Sequence[str],
) -> None:
    server = loopback(api_key=KEY, cut=0.5)
    monkeypatch.setenv(variable, f"{KEY}\r\n")  # as files from elsewhere end
    result = rank_k(*RERANK, *server_options(server), *option, "--report", "report.json")
    assert result.code == 0
    assert {request.authorization for request in server.requests} == {f"Bearer {KEY}"}
    output = result.out + result.err + rank_k("journal", "export", "out.trec.journal.sqlite").out
    assert KEY not in output
    assert KEY.encode() not in read_all_files(collection_folder)

    server.change(api_key="another")
    result = rank_k(*RERANK, *server_options(server), *option, "--journal", "new.sqlite")
    assert (result.code, len(result.lines)) == (2, 1)
    assert KEY not in result.err


def test_openai_api_key_is_sent_to_openai_only(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = loopback()
    assert rank_k(*RERANK, *server_options(server)).code == 0
    assert {request.authorization for request in server.requests} == {""}
    assert api_key("https://api.openai.com/v1", None) == KEY
    for other_server in (
        "http://api.openai.com/v1",  # for all on the way to read
        "https://api.openai.com.example.org/v1",
        "https://example.org/api.openai.com",
        "https://openai.com/v1",
        None,
    ):
        assert api_key(other_server, None) is None
    monkeypatch.setenv("RANK_K_API_KEY", "mine")
    assert api_key("https://api.openai.com/v1", None) == "mine"


def test_rerank_reports_a_redirect_and_does_not_follow_it(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK_K_API_KEY", KEY)
    redirect_target = loopback()
    result = rank_k(*RERANK, *server_options(loopback(redirect=redirect_target.url)))
    assert error_line(result, "rerank").endswith(
        f"redirects to {redirect_target.url}/models; give that address with --server"
    )
    assert redirect_target.requests == []


def test_error_messages_omit_keys_from_the_command_line(collection_folder: Path, rank_k: RankK) -> None:
    for option in (("--api-key", KEY), (f"--api-key={KEY}",), ("--api-key-env", KEY)):
        line = error_line(rank_k(*RERANK, "--server", "http://127.0.0.1:9", *option), "rerank")
        assert KEY not in line
        assert "--api-key" in line
    line = error_line(rank_k(*RERANK, "--server", f"http://127.0.0.1:9/v1?api_key={KEY}"), "rerank")
    assert KEY not in line
    line = error_line(rank_k(*RERANK, "--server", f"http://user:{KEY}@127.0.0.1:9/v1"), "rerank")
    assert KEY not in line
