"""The golden record holds, and the check notices changes."""

from __future__ import annotations

import copy
import http.client
from typing import Any

import pytest

from tests.golden.cases import GROUPS
from tests.golden.compare import Renames, differences, read_renames
from tests.golden.model_server import running_model_server
from tests.golden.record import check_group, read_group, read_texts

STATISTICS = read_renames().statistics


@pytest.mark.parametrize("group", GROUPS)
def test_golden_group_equals_record(group: str) -> None:
    paragraphs = check_group(group)
    assert not paragraphs, "\n\n".join(paragraphs)


def test_record_has_every_case() -> None:
    for group, cases in GROUPS.items():
        assert [case.name for case in cases] == list(dict.fromkeys(case.name for case in cases))
        assert read_group(group).keys() == {case.name for case in cases}


def _two_copies(group: str, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recorded case twice, each as a group of one case; the second one is to be changed."""
    recorded = {case: read_group(group)[case]}
    return recorded, copy.deepcopy(recorded)


def _record_of(**fields: Any) -> dict[str, Any]:
    """A made-up record of one case, whose command wrote `fields` as JSON."""
    return {"case": {"steps": [{"code": 0, "stdout": fields}], "requests": []}}


def test_differences_none_for_equal_records() -> None:
    for group in GROUPS:
        recorded = read_group(group)
        assert differences(group, recorded, copy.deepcopy(recorded), Renames(), {}) == []


def test_differences_report_a_changed_request_byte() -> None:
    recorded, current = _two_copies("strategies", "sliding")
    texts = read_texts()
    request = next(r for r in current["sliding"]["requests"] if "body" in r)
    reference = request["body"]["messages"][0]["content"]
    request["sha256"] = "0" * 16
    request["body"]["messages"][0]["content"] = "text:changed"
    texts["text:changed"] = texts[reference].replace("best first", "worst first")
    head, diff = sorted(differences("strategies", recorded, current, Renames(), texts), key=len)
    assert head == "strategies / sliding / requests: 1 recorded ones are not sent, 1 are new"
    assert "best first" in diff
    assert "worst first" in diff


def test_differences_report_a_request_sent_twice() -> None:
    recorded, current = _two_copies("strategies", "sliding")
    next(r for r in current["sliding"]["requests"] if "body" in r)["times"] = 2
    new, summary = differences("strategies", recorded, current, Renames(), {})
    assert new.startswith("strategies / sliding / new request POST /v1/chat/completions")
    assert summary == "strategies / sliding / requests: 0 recorded ones are not sent, 1 are new"


def test_differences_ignore_how_often_tokens_are_counted() -> None:
    recorded, current = _two_copies("options", "passage-tokens")
    next(r for r in current["passage-tokens"]["requests"] if r["request"] == "POST /tokenize")["times"] = 2
    assert differences("options", recorded, current, Renames(), {}) == []


def test_differences_report_a_changed_measure() -> None:
    recorded, current = _two_copies("evaluation", "JSON")
    run = next(iter(current["JSON"]["steps"][0]["stdout"].values()))
    run["mean"]["nDCG@10"] += 1e-6
    [paragraph] = differences("evaluation", recorded, current, Renames(statistics=STATISTICS), {})
    assert "nDCG@10: recorded" in paragraph


def test_differences_report_a_changed_ranking() -> None:
    recorded, current = _two_copies("strategies", "sliding")
    rankings = current["sliding"]["steps"][0]["files"]["out.trec"]["rankings"]
    rankings["q1"] = " ".join(reversed(rankings["q1"].split()))
    [paragraph] = differences("strategies", recorded, current, Renames(), {})
    assert paragraph.startswith("strategies / sliding / step 1 / out.trec / rankings / q1: recorded")


def test_differences_report_a_renamed_key_unless_it_is_in_the_table() -> None:
    recorded, current = _record_of(old=1, same=2), _record_of(new=1, same=2)
    assert differences("group", recorded, current, Renames(), {}) == [
        "group / case / step 1 / stdout: key 'new' is new (1); if renamed, add it to renames.toml",
        "group / case / step 1 / stdout: key 'old' is missing (recorded 1); if renamed, add it to renames.toml",
    ]
    for table in (
        Renames(keys={"old": "new"}),
        Renames(groups={"group": {"keys": {"old": "new"}}}),
        Renames(added=("new",), removed=("old",)),
    ):
        assert differences("group", recorded, current, table, {}) == []
    assert len(differences("group", recorded, current, Renames(groups={"other": {"keys": {"old": "new"}}}), {})) == 2


def test_differences_report_a_changed_value_under_a_renamed_key() -> None:
    [paragraph] = differences("group", _record_of(old=1), _record_of(new=2), Renames(keys={"old": "new"}), {})
    assert paragraph == "group / case / step 1 / stdout / new: recorded 1, now 2"


def test_differences_report_a_renamed_value_unless_it_is_in_the_table() -> None:
    recorded, current = _record_of(method="old", other="old"), _record_of(method="new", other="old")
    [paragraph] = differences("group", recorded, current, Renames(), {})
    assert paragraph == 'group / case / step 1 / stdout / method: recorded "old", now "new"'
    assert differences("group", recorded, current, Renames(values={"method": {"old": "new"}}), {}) == []


def test_differences_allow_monte_carlo_error_in_resampled_values_only() -> None:
    table = Renames(statistics={"interval": 0.02})
    recorded = _record_of(mean=0.1, interval=[0.05, 0.15])
    assert differences("group", recorded, _record_of(mean=0.1, interval=[0.06, 0.14]), table, {}) == []
    assert len(differences("group", recorded, _record_of(mean=0.11, interval=[0.05, 0.15]), table, {})) == 1
    assert len(differences("group", recorded, _record_of(mean=0.1, interval=[0.0, 0.15]), table, {})) == 1
    assert len(differences("group", recorded, _record_of(mean=0.1, interval=[0.06, 0.14]), Renames(), {})) == 2


def test_differences_report_missing_and_new_cases() -> None:
    recorded, current = _two_copies("tool", "MCP over pipes")
    current["another"] = current.pop("MCP over pipes")
    paragraphs = differences("tool", recorded, current, Renames(), {})
    assert paragraphs == ["tool / MCP over pipes: not run anymore", "tool / another: not in the record"]


def test_model_server_keeps_the_raw_bytes() -> None:
    with running_model_server() as server:
        body = b'{"messages":  [{"role": "user", "content": "Query: a b\\n[1] a b\\n[2] c"}]}'
        connection = http.client.HTTPConnection(server.origin.removeprefix("http://"))
        connection.request("POST", "/plain/normal/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse().read()
        connection.close()
        [captured] = server.take_requests()
    assert (captured.method, captured.path, captured.body) == ("POST", "/v1/chat/completions", body)
    assert b"</think>" in response
    assert b"[1] > [2]" in response
