"""What a noised table says: quantiles, a mean, a Kaplan-Meier curve; nothing of fewer than ten."""

import numpy as np
import pytest

from coop.documents.serving import CohortAnswer, CohortQuery
from coop.documents.study import MICRO
from inference_gateway.query import combine
from inference_gateway.tables import read

AGES = CohortQuery(where=[], release="histogram", field="age", edges=[40, 50, 60], rho_nano=1)
DEATHS = CohortQuery(
    where=[], release="survival", field="days", event="died", edges=[10, 20, 30], rho_nano=1
)


def test_quantiles_lie_where_the_counts_put_them():
    table = read([10, 40, 40, 10], AGES, cell_sd_micro=0)
    quantiles = table["quantiles_micro"]
    assert quantiles["50"] == 50 * MICRO
    assert quantiles["25"] == round(43.75 * MICRO)
    assert quantiles["10"] is None  # at the edge of what is known
    assert table["mean_between_edges_micro"] == 50 * MICRO


def test_the_curve_is_kaplan_and_meiers_on_interval_counts():
    """Against the estimator written out over people, at the end of each interval."""
    generator = np.random.default_rng(3)
    times = generator.integers(0, 40, 400)
    died = generator.random(400) < 0.4
    edges = np.array(DEATHS.edges)
    place = np.searchsorted(edges, times, side="right")
    cells = [int(((place == at) & died).sum()) for at in range(4)]
    cells += [int(((place == at) & ~died).sum()) for at in range(4)]
    curve = read(cells, DEATHS, cell_sd_micro=0)["survival"]
    share, expected = 1.0, []
    for at in range(3):
        at_risk = int((place >= at).sum())
        share *= 1 - int(((place == at) & died).sum()) / at_risk
        expected.append({"until": DEATHS.edges[at], "at_risk": at_risk, "surviving_micro": share})
    for got, want in zip(curve, expected, strict=True):
        assert (got["until"], got["at_risk"]) == (want["until"], want["at_risk"])
        assert got["surviving_micro"] == pytest.approx(want["surviving_micro"] * MICRO, abs=1)


def test_fewer_than_ten_people_are_not_read_and_few_at_risk_end_the_curve():
    assert "quantiles_micro" not in read([2, 3, 2, 2], AGES, cell_sd_micro=0)
    assert read([2, 3, 2, 2], AGES, cell_sd_micro=0)["suppressed"] == "fewer than 10 people"
    curve = read([1, 0, 0, 0, 6, 3, 1, 0], DEATHS, cell_sd_micro=0)["survival"]
    assert [point["until"] for point in curve] == [10]


def test_noise_below_zero_spoils_no_curve():
    for cells in ([-4, 30, -2, 5], [100, -90, 5, 5], [0, 12, 0, 0]):
        table = read(cells, AGES, cell_sd_micro=0)
        values = [v for v in table["quantiles_micro"].values() if v is not None]
        assert values == sorted(values)
        assert all(40 * MICRO <= value <= 60 * MICRO for value in values)
    curve = read([50, -10, 30, 0, -20, 5, 5, 5], DEATHS, cell_sd_micro=0)["survival"]
    shares = [point["surviving_micro"] for point in curve]
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= share <= MICRO for share in shares)


def test_the_hospitals_tables_add_up_cell_by_cell_and_so_do_their_variances():
    def one(site: str, cells: list[int]) -> CohortAnswer:
        return CohortAnswer(
            job_id="j", job_sha256="0" * 64, site=site, lease_sha256="0" * 64,
            count_noised=sum(cells), cells_noised=cells, sigma_count_micro=3 * MICRO, rho_nano=1,
            debit_sequence=1, data_version=1, cohort_commitment="0" * 64,
        )  # fmt: skip

    both = combine([one("a", [1, 20, 3, 4]), one("b", [5, 16, 7, 8])], AGES)
    assert both.table["cells"] == [6, 36, 10, 12]
    assert both.count == 64
    assert both.table["cell_sd_micro"] == pytest.approx(18**0.5 * MICRO, abs=2)
    assert both.count_sd_micro == pytest.approx(72**0.5 * MICRO, abs=4)
