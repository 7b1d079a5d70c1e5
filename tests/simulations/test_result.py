"""The folder of a run: whole or not there, and all of it can be read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from p2pnode.errors import ConfigError, UsageError
from p2pnode.simulations.metrics import measures_of
from p2pnode.simulations.recorder import TABLES, Recorder
from p2pnode.simulations.result import Result, load_params, load_run, source_digest
from p2pnode.simulations.scenario import Scenario


def a_result(seed: int = 7) -> Result:
    recorder = Recorder()
    recorder.row("published", message=0, topic="adverts", origin=0, at_s=1.0, bytes=900, audience=2)
    for node, delay_s in ((1, 0.1), (2, 1 / 3)):
        recorder.row("messages", message=0, node=node, at_s=1 + delay_s, delay_s=delay_s, hops=node)
        recorder.event(1 + delay_s, node, "delivered", 0)
    for node, region in enumerate(("eu", "us", 'o"dd&')):
        recorder.row("nodes", node=node, role="peer", region=region, nat="public", delivered=1)
    recorder.row("sessions", outcome="done", found=True, tokens_out=12)
    recorder.edge(0, 1)
    recorder.edge(1, 2, "dht")
    return Result(
        scenario=Scenario(name="tiny", nodes=3, duration_s=10.0),
        seed=seed,
        recorder=recorder,
        trace_hash=recorder.trace_hash,
        tables_hash=recorder.tables_hash,
        events=2,
        wall_s=0.5,
        measures=measures_of(recorder, begin_s=0.0, end_s=10.0),
    )


def test_a_folder_has_all_forms_of_a_run(tmp_path: Path) -> None:
    a_result().save(tmp_path / "run")
    names = {each.name for each in (tmp_path / "run").iterdir()}
    tables = {f"{name}.parquet" for name in TABLES}
    assert names == {"params.json", "summary.json", "analysis.txt", "report.html", "graph.gml", *tables}


def test_what_is_read_back_is_the_run_bit_for_bit(tmp_path: Path) -> None:
    result = a_result()
    result.save(tmp_path / "run")
    found = load_run(tmp_path / "run")
    assert (found.scenario, found.seed, found.trace_hash) == (result.scenario, 7, result.trace_hash)
    assert found.figures == result.figures
    assert repr(found.measures.curves) == repr(result.measures.curves)  # NaN is not itself, its text is
    assert load_params(tmp_path / "run" / "params.json") == (result.scenario, 7, result.trace_hash)


def test_params_say_what_ran_and_where(tmp_path: Path) -> None:
    a_result().save(tmp_path / "run")
    params = json.loads((tmp_path / "run" / "params.json").read_text())
    assert params["scenario"]["nodes"] == 3
    assert params["code"] == source_digest()
    assert re.fullmatch("[0-9a-f]{64}", params["trace_hash"])
    assert set(params["machine"]) == {"system", "processor", "cores", "python"}


def test_tables_are_parquet_with_the_types_of_their_columns(tmp_path: Path) -> None:
    result = a_result()
    result.save(tmp_path / "run")
    sessions = pq.read_table(tmp_path / "run" / "sessions.parquet")
    kinds = {"int": "int64", "float": "double", "bool": "bool", "str": "dictionary<values=string"}
    for name, kind in TABLES["sessions"].items():
        assert str(sessions.schema.field(name).type).startswith(kinds[kind])
    messages = pd.read_parquet(tmp_path / "run" / "messages.parquet")
    pd.testing.assert_frame_equal(messages, result.table("messages"), check_exact=True)
    assert messages["delay_s"].tolist() == [0.1, 1 / 3]
    assert result.table("nodes")["region"].tolist() == ["eu", "us", 'o"dd&']


def test_the_graph_is_gml_with_quotes_that_hold(tmp_path: Path) -> None:
    a_result().save(tmp_path / "run")
    text = (tmp_path / "run" / "graph.gml").read_text()
    assert re.findall(r"source (\d+) target (\d+) kind \"(\w+)\"", text) == [
        ("0", "1", "mesh"),
        ("1", "2", "dht"),
    ]
    assert 'region "o&quot;dd&amp;"' in text
    assert text.count("[") == text.count("]") == 6


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    a_result(1).save(tmp_path / "run")
    with pytest.raises(UsageError, match="exists: name another folder"):
        a_result(2).save(tmp_path / "run")
    assert load_run(tmp_path / "run").seed == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("params.json", "{", "is not JSON"),
        ("params.json", "[]", "is not the file of a run"),
        ("params.json", '{"format": 99}', "is not the params.json of a run of this version"),
        ("params.json", '{"format": 1, "seed": 1}', "has no table of a scenario: name the scenario and the"),
        (
            "params.json",
            '{"format": 1, "scenario": {}, "seed": "one"}',
            "has the seed 'one', which is no whole number",
        ),
        ("params.json", b"\xff\xfe", "it is not text in UTF-8.: save it in UTF-8"),
        ("params.json", None, "params.json is a folder, not a file"),
        ("summary.json", "{}", "is no folder of a run .summary.json has no figures.: run it again"),
        (
            "summary.json",
            '{"figures": {"a": "b"}, "curves": {}}',
            "summary.json: a is 'b', which is no fig",
        ),
        ("summary.json", '{"figures": [], "curves": {}}', "summary.json has another form than a run writes"),
    ],
)
def test_a_folder_whose_files_are_damaged_is_told_from_a_run(
    tmp_path: Path, name: str, text: str | bytes | None, said: str
) -> None:
    a_result().save(tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink()
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=said):
        load_run(tmp_path / "run")


def test_a_parameter_of_params_that_is_unknown_is_named(tmp_path: Path) -> None:
    a_result().save(tmp_path / "run")
    path = tmp_path / "run" / "params.json"
    params: dict[str, Any] = json.loads(path.read_text())
    params["scenario"]["nods"] = 3
    path.write_text(json.dumps(params))
    with pytest.raises(ConfigError, match=r"params\.json: nods is no parameter: did you mean nodes\?"):
        load_params(path)


def test_a_notebook_shows_the_analysis() -> None:
    assert "reliability  100% of deliveries" in a_result()._repr_html_()
