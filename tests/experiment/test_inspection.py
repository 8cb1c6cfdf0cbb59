"""What `--signal` and `--profile` print of a run, and that nothing of it stays."""

import io

import pytest
from rich.console import Console
from test_sweep import planned

from squeezenet_jax.experiment import inspection


@pytest.mark.long
def test_the_signals_table_has_a_row_for_each_layer_of_each_setting():
    plan = planned()
    tables = list(inspection.signal_tables(plan))
    assert [table.title for table in tables] == ["bypass=none,seed=0", "bypass=simple,seed=0"]
    layers = [layer.name for layer in plan.runs[0].settings.trace() if layer.kind == "conv"]
    for table in tables:
        names, outputs, gradients = (list(column.cells) for column in table.columns)
        assert [name for name in names if name in layers] == layers
        assert all(float(value) > 0 for value in (*outputs, *gradients))


@pytest.mark.long
def test_a_profile_prints_ten_operations_and_what_a_step_took(tmp_path):
    text = io.StringIO()
    inspection.show_profile(planned(), 3, tmp_path, Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert sum(" % " in line and "│" in line for line in lines) == inspection.MOST_EXPENSIVE
    assert any(line.startswith("A step took ") for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"profile"}
    assert list(tmp_path.rglob("*.trace.json.gz"))
