import json

import pytest

from datamodules.ledger import SETUP, Ledger, LedgerError, Place
from datamodules.reasons import Reason
from datamodules.samples import Rejected


def bad(key: str, code: Reason = Reason.DAMAGED) -> Rejected:
    return Rejected("a.tar", key, "png", code, "it is damaged")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_accounts_for_everything_and_lists_each_once(tmp_path):
    path = tmp_path / "deep" / "rejected.jsonl"
    ledger = Ledger(path, 0.5)
    ledger.begin()
    ledger.record(Place(0, 0), 3, [bad("a")], 10)
    ledger.record(Place(1, 0), 2, [bad("a"), bad("b", Reason.EMPTY)], 10)
    assert (ledger.num_read, ledger.num_delivered, ledger.num_rejected) == (8, 5, 3)
    assert [item.key for item in ledger.rejected] == ["a", "b"]
    assert [(line["key"], line["epoch"], line["step"]) for line in lines(path)] == [
        ("a", 0, 0),
        ("b", 1, 0),
    ]
    wanted = {"shard": "a.tar", "member": "png", "code": "empty", "reason": "it is damaged"}
    assert wanted.items() <= lines(path)[1].items()
    assert str(ledger) == "read 8 = delivered 5 + rejected 3 (1 damaged, 1 empty)"


def test_the_budget_stops_the_run():
    ledger = Ledger(None, 0.1)
    ledger.record(Place(0, 0), 5, [bad("a")], 10)
    ledger.record(Place(1, 0), 5, [bad("a")], 10)  # known already
    with pytest.raises(LedgerError, match=r"2 of 10 samples .* most of them \(2\) as damaged"):
        ledger.record(Place(1, 1), 5, [bad("b")], 10)
    with pytest.raises(ValueError, match="max_rejected=2"):
        Ledger(None, 2)


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    path = tmp_path / "rejected.jsonl"
    ledger = Ledger(path, 1)
    ledger.record(SETUP, 0, [bad("")], 10)
    assert not path.exists()  # this may be a run that resumes: nothing is lost before it says
    ledger.begin()
    for step, key in enumerate("abc"):
        ledger.record(Place(0, step), 1, [bad(key)], 10)
    with path.open("a") as file:
        file.write('{"shard": "a.t')  # cut off by a kill

    again = Ledger(path, 1)
    again.record(SETUP, 0, [bad("")], 10)
    again.rewind(Place(0, 2))
    again.begin()
    assert [line["key"] for line in lines(path)] == ["", "a", "b"]
    again.record(Place(0, 2), 1, [bad("c"), bad("a")], 10)
    assert [line["key"] for line in lines(path)] == ["", "a", "b", "c"]
    assert (again.num_read, again.num_delivered, again.num_rejected) == (3, 1, 2)

    fresh = Ledger(path, 1)
    fresh.begin()
    assert path.read_text() == ""


def test_a_full_disk_is_an_error(tmp_path):
    ledger = Ledger(tmp_path / "rejected.jsonl", 1)
    ledger.begin()
    ledger.path.unlink()
    ledger.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        ledger.record(Place(0, 0), 0, [bad("a")], 10)
