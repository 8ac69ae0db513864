"""The search goes from phase to phase, and says of each run which one made it."""

from collections import Counter

import pytest
from fabricated import World, data, records

from microumup.lab.figures.command import FIGURES
from microumup.lab.figures.figure import Known
from microumup.lab.figures.search import COMBINED, LINES, PHASES, RANDOM, RATE, expected_best, random_losses, searches
from microumup.lab.figures.settings import LAPTOP, QUICK
from microumup.lab.figures.store import Supposed, wanted


def row(phase: str, loss: float, lr: float = 1.0) -> dict[str, object]:
    return {"phase": phase, "lr": lr, "seed": 0, "vocab_size": 9, "loss": loss}


def test_the_phases_of_a_search_are_read_off_its_rows() -> None:
    first = [row(RATE, 3.0), row(RATE, 2.5, lr=2.0)]
    line_searches = [row(LINES, loss, 2.0) for loss in (2.4, 2.6, 2.3)]
    combined = [row(COMBINED, 2.2, 4.0), row(COMBINED, 2.35, 2.0)]
    rows = [*first, *combined, *line_searches, row(RANDOM, 2.9)]
    [search] = searches(rows)
    assert search == (2.5, 2.3, 2.35)
    assert random_losses(rows) == [2.9]


def test_every_row_says_which_phase_made_it() -> None:
    """A search that a machine made is not to be guessed from its values: the best may be the defaults."""
    runs = data(FIGURES["fig2-right"], World()).runs
    for line in ("mup-small", "umup"):
        for seed in range(5):
            own = [r for r in runs if r["line"] == line and r["seed"] == seed]
            phases = {phase: [r for r in own if r["phase"] == phase] for phase in PHASES}
            assert [len(phases[phase]) for phase in (RATE, COMBINED, RANDOM)] == [9, 3, 20]
            [lr] = {r["lr"] for r in phases[LINES]}
            assert lr in {r["lr"] for r in phases[RATE]}
            names = [name for name in own[0] if name not in ("phase", "loss")]
            first = [[r[name] for name in names] for r in phases[RATE]]
            assert not any([r[name] for name in names] in first for r in phases[LINES])  # a run counts once
            best = min(phases[RATE], key=lambda r: float(r["loss"]))
            assert lr == best["lr"]


def test_a_look_ahead_counts_what_a_search_will_make() -> None:
    """Wherever its optima are found, at the edge of an axis too."""
    figure, edge = FIGURES["fig2-right"], World()._replace(lr=dict.fromkeys(World().lr, 9.0))
    assert figure.recipe
    ahead = Counter((run.line, run.role) for run in figure.recipe(LAPTOP, Supposed()))
    for world in (World(), edge):
        made = Counter((run.line, run.role) for run in figure.recipe(LAPTOP, records(figure, world)))
        assert made == ahead


@pytest.mark.parametrize(("count", "best"), [(1, 2.0), (2, (1 + 1 + 2) / 3), (3, 1.0), (9, 1.0)])
def test_a_shorter_random_search_is_a_mean_over_samples(count: int, best: float) -> None:
    assert expected_best([3.0, 1.0, 2.0], count) == pytest.approx(best)


def test_a_search_goes_on_from_what_it_has_found() -> None:
    """At the best learning rate first, with the best of all values last: not wherever a fixed list would look."""
    known: Known = {}
    figure = FIGURES["fig2-right"]
    phases = []
    while new := {id: job for id, job in wanted([figure], QUICK, known).items() if id not in known}:
        phases.append(new)
        for id, job in new.items():
            c = job.config
            known[id] = {"loss": -c.eta - c.alpha_res - c.alpha_emb - c.alpha_ffn_act / 100}
    assert len(phases) == 3
    umup = [job.config for job in phases[2].values() if job.config.scheme == "umup"]
    assert umup
    assert all(c.alpha_res == c.alpha_ffn_act == 8 for c in umup)
    highest = max(job.config.eta for job in phases[0].values() if job.config.scheme == "umup" and job.config.seed == 0)
    assert all(job.config.eta == highest for job in phases[1].values() if job.config.scheme == "umup")
