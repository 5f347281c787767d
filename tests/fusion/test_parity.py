"""The parity table of `docs/parity.md`: made by real processes, and judged here."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.fusion.parity_cases import RIGHT, WRONG, cases

ROOT = Path(__file__).parents[2]
BAR = 1e-10


def measure(folder: Path, *ranks: int, device: str = "cpu") -> dict[str, float]:
    path = folder / "deviations.json"
    arguments = [str(path), device, *map(str, ranks)]
    command = [sys.executable, "-m", "tests.fusion.parity_driver", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=540)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, float]:
    return measure(tmp_path_factory.mktemp("parity"), 1, 2, 3)


def judge(found: dict[str, float], ranks: int) -> None:
    """Everything right within the bar, everything wrong far beyond it."""
    for case in cases(ranks):
        worst = found[str(case)]
        assert worst < BAR if case.method in RIGHT[ranks] else worst > 1e9 * BAR, str(case)
    assert found[f"good gradients | {ranks}"] == 1
    assert found[f"bad gradients | {ranks}"] == 0


def published() -> dict[tuple[str, int], float]:
    """(method, number of processes) to the figure in the table."""
    cells = {}
    for line in (ROOT / "docs" / "parity.md").read_text().splitlines():
        name, *figures = [cell.strip() for cell in line.strip("|").split("|")]
        if len(figures) == 3 and not set(name) <= set("- "):
            for ranks, figure in enumerate(figures, start=1):
                if re.fullmatch(r"[\d.]+e[-+]\d+", figure):
                    cells[name, ranks] = float(figure)
    return cells


def judge_page(found: dict[str, float], ranks: int) -> None:
    """The page names every way of this many processes, each with its largest deviation."""
    largest: dict[tuple[str, int], float] = defaultdict(float)
    smallest: dict[tuple[str, int], float] = defaultdict(lambda: float("inf"))
    for case in cases(ranks):
        key = case.method, ranks
        largest[key] = max(largest[key], found[str(case)])
        smallest[key] = min(smallest[key], found[str(case)])
    page = {key: figure for key, figure in published().items() if key[1] == ranks}
    assert set(page) == set(largest)
    for key, figure in page.items():
        if key[0] in RIGHT[ranks]:
            assert largest[key] < 10 * figure < BAR  # other processors round otherwise
        else:
            assert figure == pytest.approx(smallest[key], rel=0.1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_are_those_of_one_big_batch_on_one_process(measured, ranks):
    assert len([case for case in cases(ranks) if case.method in RIGHT[ranks]]) >= 80
    judge(measured, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_published_table_is_what_was_measured(measured, ranks):
    judge_page(measured, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_judge_bites(measured, ranks):
    wrong = [case for case in cases(ranks) if case.method in WRONG[ranks]]
    assert len(wrong) == 4 * len(WRONG[ranks])
    for case in wrong:
        right = str(case._replace(method=RIGHT[ranks][0]))
        with pytest.raises(AssertionError, match=re.escape(right)):
            judge({**measured, right: measured[str(case)]}, ranks)
