"""The command `gradcheck`: what it prints, and that it fails where a check does."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from test_gradcheck import constants_off_by

from microumup.lab import gradcheck
from microumup.lab.gradcheck import check_model, main, tiny_config
from microumup.parametrization import SCHEMES

# ---------------------------------------------------------------------------------------------------------------------
# The command

LINES = (10 + 5) + (8 + 4)  # pairs, and those of them with factors; of ops and fused


@pytest.fixture
def small(monkeypatch):
    """Smaller models and fewer directions, for what is no question of the numbers."""
    monkeypatch.setattr(gradcheck, "tiny_config", lambda scheme: replace(tiny_config(scheme), layers=1))
    monkeypatch.setattr(gradcheck, "check_model", partial(check_model, sample=2))


@pytest.mark.usefixtures("small")
def test_the_command_succeeds_and_its_last_line_is_json(capsys):
    assert main(["--scheme", "sp", "umup", "--json", "--verbose"]) == 0
    out = capsys.readouterr().out.splitlines()
    report = json.loads(out[-1])
    assert report["passed"] is True
    assert {check["part"] for check in report["checks"]} == {1, 2, 3}
    assert set(report["checks"][0]) == {"part", "name", "error", "predicted", "measured", "passed"}
    names = [(check["part"], check["name"]) for check in report["checks"]]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for part, name in names if part == 3} == {"sp", "umup"}
    assert out[-2] == f"{len(names)} of {len(names)} checks hold"
    assert sum(line.endswith(" ok") for line in out) == len(names)


@pytest.mark.usefixtures("small")
def test_the_table_has_a_line_for_each_op_and_scheme_with_its_worst_error(capsys):
    assert main(["--scheme", "sp", "umup", "--json"]) == 0
    *out, last = capsys.readouterr().out.splitlines()
    families = {}
    for check in json.loads(last)["checks"]:
        families.setdefault((check["part"], check["name"].split()[0]), []).append(check)
    lines = [line.split() for line in out if line.startswith("    ")]
    assert len(lines) == len(families) == LINES + 2
    for line, ((part, name), checks) in zip(lines, families.items(), strict=True):
        worst = f"{max(check['error'] for check in checks):.1e}"
        assert line[:6] == [name, str(len(checks)), "checks,", "the", "worst", worst + "," * (part == 3)]
        assert line[-1] == "ok"


@pytest.mark.usefixtures("small")
def test_a_check_that_fails_is_printed_in_full_beside_the_lines_of_the_others(monkeypatch, capsys):
    monkeypatch.setattr(gradcheck, "gradient_constants", partial(constants_off_by, np.sqrt(2)))
    assert main(["--scheme", "umup"]) == 1
    out = capsys.readouterr().out.splitlines()
    [line] = [line for line in out if " umup " in line and "checks" in line]
    assert line.endswith("off by 2.9e-01  1 wrong:")  # 1 - 1/√2
    [row] = [line.split() for line in out if line.endswith("FAIL")]
    assert row[:2] == ["umup", "layer0.up"]
    assert float(row[-3]) == pytest.approx(np.sqrt(2) * float(row[-2]))
    assert len([line for line in out if line.endswith(" ok")]) == LINES


def test_the_command_checks_every_scheme_also_one_added_later(monkeypatch):
    asked = []
    monkeypatch.setitem(SCHEMES, "mine", SCHEMES["umup"])
    monkeypatch.setattr(gradcheck, "check_model", lambda config, seed: asked.append(config.scheme) or [])
    assert main(["--quiet"]) == 0
    assert asked == list(SCHEMES)


@pytest.mark.usefixtures("small")
def test_a_scheme_added_later_with_unequal_factors_fails(monkeypatch):
    hidden = SCHEMES["umup"].hidden._replace(A_backward=lambda s: 1.1 * s.fan_in**-0.5)
    monkeypatch.setitem(SCHEMES, "mine", SCHEMES["umup"]._replace(hidden=hidden))
    assert main(["--scheme", "mine", "--quiet"]) == 1


@pytest.mark.usefixtures("small")
def test_the_command_fails_names_what_failed_and_stays_json(monkeypatch, capsys):
    monkeypatch.setattr(gradcheck, "gradient_constants", partial(constants_off_by, np.nan))
    assert main(["--scheme", "umup", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith("microumup gradcheck: 1 checks failed: umup layer0.up\n")
    assert [line.split()[1] for line in captured.out.splitlines() if line.endswith("FAIL")] == ["layer0.up"]
    report = json.loads(captured.out.splitlines()[-1], parse_constant=pytest.fail)  # a bare NaN is no JSON
    assert report["passed"] is False
    assert [check["predicted"] for check in report["checks"] if not check["passed"]] == [None]


@pytest.mark.usefixtures("small")
def test_quiet_prints_nothing(capsys):
    assert main(["--scheme", "sp", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("part", [1, 3])
def test_the_seed_changes_the_numbers_and_repeats_them(part, capsys):
    def measured(seed):
        main(["--scheme", "umup", "--quiet", "--json", "--seed", seed])
        checks = json.loads(capsys.readouterr().out)["checks"]
        return [check["measured"] for check in checks if check["part"] == part]

    assert measured("1") == measured("1") != measured("2")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scheme", "umupp"], "--scheme: 'umupp' is unknown; choose from sp, mup"),
        (["--seed", "-1"], "--seed: -1 is too small"),
        (["--seed", "x"], "--seed: 'x' is not a whole number"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(argv, message, refused):
    assert message in refused(main, argv)
