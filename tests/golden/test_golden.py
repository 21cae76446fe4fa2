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


def _copies(group: str, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recorded case twice, each as a group of one case; the second one is to be changed."""
    recorded = {case: read_group(group)[case]}
    return recorded, copy.deepcopy(recorded)


def _report(current: dict[str, Any]) -> Any:
    [case] = current.values()
    return case["steps"][0]["files"]["report.json"]


def test_differences_none_for_equal_records() -> None:
    for group in GROUPS:
        recorded = read_group(group)
        assert differences(group, recorded, copy.deepcopy(recorded), Renames(), {}) == []


def test_differences_report_a_changed_request_byte() -> None:
    recorded, current = _copies("strategies", "sliding")
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
    recorded, current = _copies("strategies", "sliding")
    next(r for r in current["sliding"]["requests"] if "body" in r)["times"] = 2
    new, summary = differences("strategies", recorded, current, Renames(), {})
    assert new.startswith("strategies / sliding / new request POST /v1/chat/completions")
    assert summary == "strategies / sliding / requests: 0 recorded ones are not sent, 1 are new"


def test_differences_ignore_how_often_tokens_are_counted() -> None:
    recorded, current = _copies("options", "passage-tokens")
    next(r for r in current["passage-tokens"]["requests"] if r["request"] == "POST /tokenize")["times"] = 2
    assert differences("options", recorded, current, Renames(), {}) == []


def test_differences_report_a_changed_measure() -> None:
    recorded, current = _copies("evaluation", "JSON")
    run = next(iter(current["JSON"]["steps"][0]["stdout"].values()))
    run["mean"]["nDCG@10"] += 1e-6
    [paragraph] = differences("evaluation", recorded, current, Renames(statistics=STATISTICS), {})
    assert "nDCG@10: recorded" in paragraph


def test_differences_report_a_changed_ranking() -> None:
    recorded, current = _copies("strategies", "sliding")
    rankings = current["sliding"]["steps"][0]["files"]["out.trec"]["rankings"]
    rankings["q1"] = " ".join(reversed(rankings["q1"].split()))
    [paragraph] = differences("strategies", recorded, current, Renames(), {})
    assert paragraph.startswith("strategies / sliding / step 1 / out.trec / rankings / q1: recorded")


def test_differences_report_a_renamed_key_unless_it_is_in_the_table() -> None:
    recorded, current = _copies("strategies", "sliding")
    report = _report(current)
    report["forced_answers"] = report.pop("forced_endings")
    paragraphs = differences("strategies", recorded, current, Renames(), {})
    assert ["'forced_answers' is new" in paragraphs[0], "'forced_endings' is missing" in paragraphs[1]] == [True, True]
    for table in (
        Renames(keys={"forced_endings": "forced_answers"}),
        Renames(groups={"strategies": {"keys": {"forced_endings": "forced_answers"}}}),
        Renames(added=("forced_answers",), removed=("forced_endings",)),
    ):
        assert differences("strategies", recorded, current, table, {}) == []
    other_group = Renames(groups={"options": {"keys": {"forced_endings": "forced_answers"}}})
    assert len(differences("strategies", recorded, current, other_group, {})) == 2


def test_differences_report_a_renamed_value_unless_it_is_in_the_table() -> None:
    recorded, current = _copies("options", "defaults, with settings")
    assert _report(current)["settings"]["by"] == "comparison"
    _report(current)["settings"]["by"] = "listwise"
    [paragraph] = differences("options", recorded, current, Renames(), {})
    assert 'recorded "comparison", now "listwise"' in paragraph
    assert differences("options", recorded, current, Renames(values={"by": {"comparison": "listwise"}}), {}) == []


def test_differences_allow_monte_carlo_error_in_resampled_values_only() -> None:
    recorded, current = _copies("evaluation", "compared, JSON, CSV and HTML")
    case = current["compared, JSON, CSV and HTML"]
    compared = next(run for run in case["steps"][0]["stdout"].values() if run["against_baseline"])
    compared["against_baseline"]["nDCG@10"]["interval"][0] += 0.005
    assert differences("evaluation", recorded, current, Renames(statistics=STATISTICS), {}) == []
    compared["against_baseline"]["nDCG@10"]["interval"][0] += 0.5
    compared["against_baseline"]["nDCG@10"]["difference"] += 0.005
    assert len(differences("evaluation", recorded, current, Renames(statistics=STATISTICS), {})) == 2


def test_differences_report_missing_and_new_cases() -> None:
    recorded, current = _copies("tool", "MCP over pipes")
    current["another"] = current.pop("MCP over pipes")
    paragraphs = differences("tool", recorded, current, Renames(), {})
    assert paragraphs == ["tool / MCP over pipes: not run anymore", "tool / another: not in the record"]


def test_model_server_keeps_the_raw_bytes() -> None:
    with running_model_server() as server:
        body = b'{"messages":  [{"role": "user", "content": "Query: a b\\n[1] a b\\n[2] c"}]}'
        connection = http.client.HTTPConnection(server.origin.removeprefix("http://"))
        connection.request("POST", "/plain/normal/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse().read()
        connection.close()
        [captured] = server.take()
    assert (captured.method, captured.path, captured.body) == ("POST", "/v1/chat/completions", body)
    assert b"</think>" in reply
    assert b"[1] > [2]" in reply
