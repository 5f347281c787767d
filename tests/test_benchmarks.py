"""The benchmarks run and write rows of the right form; how fast anything is, is not tested."""

import json
import math

import pytest

from benchmarks import efficiency
from benchmarks.measure import Row


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiny_run_writes_every_technique(tmp_path, capsys) -> None:
    efficiency.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)])
    table = tmp_path / "efficiency-cpu.md"
    assert capsys.readouterr().out.strip() == str(table)
    record = json.loads(table.with_suffix(".json").read_text())
    assert {"cpu", "cores", "threads", "torch"} == set(record["hardware"])
    assert {row["technique"] for row in record["rows"]} == {
        "Anderson",
        "cost",
        "early exit per sample",
        "gradient",
        "low-precision search",
        "sparse updates",
        "warm start",
    }
    for row in record["rows"]:
        assert row["case"] and row["unit"] and row["pays"] in {"yes", "no", "costs"}
        figures = [row[name] for name in ("plain", "with_it", "ratio")]
        assert all(math.isfinite(figure) for figure in figures)
    lines = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(record["rows"])
    assert {line.count("|") for line in lines} == {9}


@pytest.mark.parametrize(("with_it", "pays"), [(5.0, "yes"), (10.5, "no"), (20.0, "costs")])
def test_a_row_says_whether_it_pays(with_it: float, pays: str) -> None:
    row = Row("a", "b", "ms", 10.0, with_it)
    assert row.pays == pays and row.ratio == 10.0 / with_it
