"""Claims: every study asks a known one, every way to decide one exists, and the page says what was found."""
import re

import pandas as pd
import pytest

from multiexit_nb.analysis import claims, reading
from multiexit_nb.analysis.paper import item_of, papers
from multiexit_nb.core import InputError, project_root
from multiexit_nb.studies import list_studies, read_study

ALL = {c.id: c for c in claims.read_claims()}


def test_studies_and_computations_are_about_known_claims():
    asked = {q.claim for name in list_studies() for q in read_study(name).questions}
    assert asked <= set(ALL)
    assert set(claims.computed.names()) <= set(ALL)
    assert {c.paper for c in ALL.values()} == {p.upper() for p in papers()} | {"X"}


@pytest.mark.parametrize("grid", sorted({c.grid for c in ALL.values()} - {""}))
def test_grids_of_claims_are_there(grid):
    assert (project_root()/"data"/"sweeps"/"full"/f"{grid}.yaml").is_file()


def test_a_claim_stands_once_and_the_file_must_be_there(tmp_path):
    one = "- {id: A-1, claim: a, published: b, test: c}\n"
    (tmp_path/"claims.yaml").write_text(one*2)
    with pytest.raises(InputError, match=r"claims=\['A-1'\]: expected every claim once"):
        claims.read_claims(tmp_path/"claims.yaml")
    with pytest.raises(InputError, match="no gone.yaml"):
        claims.read_claims(tmp_path/"gone.yaml")


def test_what_a_claim_waits_for():
    nothing = pd.DataFrame(dict(claim=[], verdict=[]))
    claim = claims.Claim("A-1", "a", "b", "c", "mate_table_2")
    assert claims.verdict_of_claim(claim, nothing, {"A-1": ["s"]}) == "waits for its runs"
    assert claims.verdict_of_claim(claim, nothing, {}) == "needs a GPU"
    assert claims.verdict_of_claim(claims.Claim("A-1", "a", "b", "c"), nothing, {}) == "needs a study"
    found = pd.DataFrame(dict(claim=["A-1"]*2, verdict=["holds", "contradicted"]))
    assert claims.verdict_of_claim(claim, found, {"A-1": ["s"]}) == "holds in part"


def test_the_page_counts_every_claim_once():
    page = claims.claims_page()
    top, *_ = page.split("\n")
    assert sum(map(int, re.findall(r"\d+", top))) == 2*len(ALL)
    assert [line.split(" | ")[0] for line in page.splitlines()[4:]] == [f"| {i}" for i in ALL]


def test_a_shipped_run_is_what_the_study_scored():
    arms = reading.shipped_runs("mate_own_share")
    run = arms["α = 3"][0]
    table, _ = reading.read_results("mate_own_share")
    rows = table[(table.arm == "α = 3") & (table.seed == run.parameters["seed"]) & (table.split == "test")]
    top1 = rows[rows.metric == "top1"].sort_values("exit").value
    assert run.result["test"]["top1"] == top1.tolist()
    assert set(run.parameters) > {"dataset", "model", "method"}
    logged = run.history
    assert logged[logged.metric == "lr"]["exit"].isna().all() and logged.epoch.min() == 1


def test_a_study_without_results_is_a_sentence():
    waits = [s for names in claims.waiting().values() for s in names] or ["gone"]
    said = reading.figure_from_study(item_of("mate", "figure 6"), waits[0], {"mate": "mate"})
    assert isinstance(said, str) and said.startswith("*MATE Figure 6: no results of the study")
