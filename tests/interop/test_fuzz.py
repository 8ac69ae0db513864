"""Whatever stands in a file, the answer is a verdict or a ValueError of one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microumup.config import TrainConfig
from microumup.interop import doctor, vectors
from microumup.interop.cases import all_cases

NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.floats(), st.sampled_from([0, 1, 1e-300, 1e300]))
JSON = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)), max_leaves=8)  # fmt: skip
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ONE_OF_EACH = {case.op: case for case in reversed(list(all_cases())) if not case.op.startswith("model")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    vectors.write(directory, ONE_OF_EACH.values())
    shutil.copytree(directory / "expected", directory / "outputs")
    return directory


@FUZZ
@given(data=st.data())
def test_any_index_is_judged_or_refused(made: Path, data: st.DataObject) -> None:
    """One place of a right index holds something else."""
    index: Any = json.loads((made / "index.json").read_text())
    place: Any = index
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.integers(0, 4)) == 0:
            break
        place = place[key]
    place[key] = data.draw(JSON)
    other = made / "index.json"
    before = other.read_bytes()
    try:
        other.write_text(json.dumps(index))
        vectors.table(vectors.check(made))
    except ValueError as error:
        assert len(str(error)) < 1000  # noqa: PT017 - where it raises nothing is as good
    finally:
        other.write_bytes(before)


@FUZZ
@given(
    groups=st.lists(
        st.fixed_dictionaries(
            {"name": st.text(max_size=8), "shape": st.lists(st.integers(1, 10**6), min_size=1, max_size=3)},
            optional={
                **dict.fromkeys(("lr", "init_std", "multiplier", "multiplier_backward", "eps"), NUMBERS),
                "weight_decay": NUMBERS,
                "type": st.sampled_from(["input", "hidden", "output"]), "in_branch": st.booleans(),
            },
        ),
        min_size=1, max_size=4,
    ),
    more=st.fixed_dictionaries({}, optional={"eta": NUMBERS, "decay_times_lr": JSON}),
)  # fmt: skip
def test_any_file_of_groups_is_examined_or_refused(tmp_path: Path, groups: list, more: dict) -> None:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"groups": groups} | more))
    config = TrainConfig()
    try:
        file = doctor.read_groups(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    doctor.report(config, file, doctor.examine(config, file))
