"""A budget in bytes, for every method: of the file as it is written."""

import pytest

from billhook import artifact
from billhook.errors import InfeasibleError
from billhook.methods import METHODS

from .problems import carry_out, ready


@pytest.mark.parametrize("method", METHODS)
def test_the_file_is_as_small_as_asked(method, tmp_path):
    prepared = ready("tinycnn", method, "bytes<=60%", keep=[0, 2])
    done = carry_out(prepared)
    bound = 0.6 * prepared.setting.dense["bytes"]
    size = artifact.write_model(tmp_path, done.small, done.patterns, {"hashes": {}})
    assert size == done.bytes == (tmp_path / artifact.WEIGHTS).stat().st_size
    assert 0 < size <= bound
    if method != "nm-only":  # whose file has one size
        assert size >= 0.85 * bound
    (row,) = prepared.plan.feasible
    assert row["quantity"] == "bytes"
    assert row["feasible"] is True


@pytest.mark.parametrize("method", METHODS)
def test_fewer_than_the_smallest_is_refused(method):
    with pytest.raises(InfeasibleError, match="bytes<=500B cannot be reached"):
        ready("tinycnn", method, "bytes<=500")
