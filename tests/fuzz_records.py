"""The readers of a run's and a sweep's own JSON files, as functions of bytes: raw, and sealed with a valid digest."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_targets import CHAIN, SEEDS, Target, _config

from qattrain.config import QuantConfig
from qattrain.errors import QattrainError
from qattrain.experiments import folder as sweeps
from qattrain.experiments import kinds
from qattrain.experiments.candidates import Budget, Candidate, Costs
from qattrain.experiments.folder import FIT_FILE
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.search_folder import Asked, SearchFolder, State, Trial
from qattrain.files import records
from qattrain.runs import folder as runs


def _as_run(folder: Path) -> Path:
    run_dir = folder / "runs" / "r"
    if not run_dir.exists():
        run_dir.mkdir(parents=True)
        (run_dir / runs.LAST_FILE).write_bytes(SEEDS.checkpoint())
        runs.write_config(run_dir, _config().model_dump(mode="json"), {"versions": {}})
        runs.write_metrics(run_dir, list(SEEDS.fields()["history"]))
    return run_dir


def read_run(name: str) -> Callable[[bytes, Path], object]:
    """What `qattrain runs`, a comparison that looks for a finished run, and a report ask of a run's files."""

    def read(data: bytes, folder: Path) -> object:
        run_dir = _as_run(folder)
        before = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(data)
        try:
            with contextlib.suppress(QattrainError):
                runs.read_metrics(run_dir)
            with contextlib.suppress(QattrainError):
                runs.find_finished(_config().model_dump(mode="json"), folder / "runs")
            runs.list_runs(folder / "runs")
            return runs.read_record(run_dir)
        finally:
            (run_dir / name).write_bytes(before)

    return read


def _plan() -> sweeps.Plan:
    config = _config().model_dump(mode="json") | {"name": None}
    return sweeps.Plan("{}", ["seed"], [sweeps.Cell(sweeps.cell_name(config), config, None)])


def _as_sweep(folder: Path) -> sweeps.SweepFolder:
    sweep = sweeps.SweepFolder(folder / "runs" / "s")
    if not sweep.path.exists():
        sweep.make()
        sweep.write_plan(_plan())
        cell = sweep.cells / _plan().cells[0].name
        cell.mkdir()
        (cell / runs.LAST_FILE).write_bytes(SEEDS.checkpoint())
        records.write(cell / sweeps.RESULT_FILE, kinds.RESULT_KIND, RESULT)
        sweeps.write_results(sweep, sweeps.sweep_document(_plan(), sweep, []), {})
    return sweep


RESULT = {
    "accuracy": 0.5,
    "epochs": 1,
    "loss": 1.5,
    "train_loss": 1.25,
    "weight_bytes": 100.0,
    "images_per_second": 9.0,
}
RESULT |= {"warnings": []}


def _in_sweep(name: str) -> Path:
    return Path("cells", _plan().cells[0].name, name) if name == sweeps.RESULT_FILE else Path(name)


def read_sweep(name: str) -> Callable[[bytes, Path], object]:
    """What resuming a sweep, its tables and its report ask of its files."""

    def read(data: bytes, folder: Path) -> object:
        sweep = _as_sweep(folder)
        place = sweep.path / _in_sweep(name)
        before = place.read_bytes()
        place.write_bytes(data)
        try:
            plan = sweep.read_plan()
            if plan is None:
                return None
            sweeps.list_sweeps(folder / "runs")
            document = sweeps.sweep_document(plan, sweep, [])
            sweeps.is_written(sweep, document, ())
            return document, sweeps.csv_text(document["rows"]), Ledger(sweep, plan.cells)
        finally:
            place.write_bytes(before)

    return read


def read_document(name: str) -> Callable[[bytes, Path], object]:
    """What a report asks of sweep.json and compare.json, before it draws."""

    def read(data: bytes, folder: Path) -> object:
        from qattrain.report.sources import find_sources

        place = folder / "documents"
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(data)
        subjects, found = find_sources([str(place / name)], folder)
        return subjects, [one.finished for one in found]

    return read


def _as_search(folder: Path) -> SearchFolder:
    search = SearchFolder(folder / "runs" / "q")
    if not search.path.exists():
        search.make()
        cell = _plan().cells[0]
        quant = QuantConfig.model_validate(cell.config["quant"])
        network = Candidate({"family": "chain"}, CHAIN, quant, Costs(100, 120, 1000))
        trial = Trial(0, network, cell, {1: 1.5}, "complete")
        search.write_state(ASKED, State(2.5, {"data": {"dataset": "digits"}}, None, [trial], [cell], [cell], {}))
        row = {"run_dir": "cells/a", "batch": 1, "model": CHAIN, "bits": 4, "act_bits": 4, "layer_bits": {}}
        row |= asdict(network.costs) | {"epochs": 1, "loss": 1.5, "accuracy": 0.5, "status": "complete", "error": None}
        final = {"run_dir": "cells/b", "seed": 0, "accuracy": 0.5, "loss": 1.5, "flash_bytes": None}
        document = {"kind": "fit", "name": "q", "version": "0", "notice": None, "dataset": "digits", "sampler": "tpe"}
        document |= {"budget": asdict(ASKED.budget), "families": ASKED.families, "held_out": 4, "rungs": [1]}
        document |= {"epochs": 1, "seconds": 2.5, "winner": "cells/a", "accuracy_mean": 0.5, "accuracy_std": None}
        document |= {"rows": [row], "finals": [final | {"milliseconds": None}]}
        records.write(search.path / FIT_FILE, kinds.FIT_KIND, document)
    return search


ASKED = Asked({"seed": 0}, {"chain": "conv ? 5x5 stride 3, pool 2, fc"}, Budget(weight_bytes=200))


def read_search(data: bytes, folder: Path) -> object:
    """What going on with a search asks of its file."""
    search = _as_search(folder)
    place = search.path / sweeps.SEARCH_FILE
    before = place.read_bytes()
    place.write_bytes(data)
    try:
        search.refuse_others(ASKED)
        return search.read_state()
    finally:
        place.write_bytes(before)


def read_fit(data: bytes, folder: Path) -> object:
    """What a report says of fit.json, its charts left out."""
    from qattrain.report import fit
    from qattrain.report.sources import find_sources

    place = folder / "documents"
    place.mkdir(exist_ok=True)
    (place / FIT_FILE).write_bytes(data)
    _, found = find_sources([str(place / FIT_FILE)], folder)
    for document in (one.document for one in found if one.is_search):
        fit.found_sentence(document)
        fit.trial_table(document)
        if document["finals"]:
            fit.final_table(document)
        fit.over_budget(document)
        fit.front(document, "macs")
    return [one.document for one in found]


READERS: dict[str, tuple[records.Kind, Callable[[bytes, Path], object]]] = {
    "config.json": (runs.CONFIG_KIND, read_run("config.json")),
    "metrics.jsonl": (runs.METRICS_KIND, read_run("metrics.jsonl")),
    "compare.json": (runs.COMPARISON_KIND, read_document("compare.json")),
    "plan.json": (kinds.PLAN_KIND, read_sweep("plan.json")),
    "result.json": (kinds.RESULT_KIND, read_sweep("result.json")),
    "sweep.json": (kinds.SWEEP_KIND, read_document("sweep.json")),
    "search.json": (kinds.SEARCH_KIND, read_search),
    "fit.json": (kinds.FIT_KIND, read_fit),
}


def read_raw(data: bytes, folder: Path) -> object:
    """The first line says which file the rest is."""
    name, _, content = data.partition(b"\n")
    names = sorted(READERS)
    return READERS[names[sum(name) % len(names)]][1](content, folder)


def read_sealed(data: bytes, folder: Path) -> object:
    """The bytes are JSON: which file, and its fields, which a valid digest seals."""
    try:
        found = json.loads(data)
        kind, read = READERS[found["file"]]
        content = found["content"]
        seal: Any = records.encoded_lines if found["file"].endswith("l") else records.encoded
        data = seal(kind, content)
    except Exception:  # no file comes of it
        return None
    return read(data, folder)


def _contents() -> dict[str, bytes]:
    """Each file as it is written."""
    row: dict[str, Any] = {"method": "qat", "run_dir": "runs/r", "accuracy": 0.5, "bits": 4}
    document = {"dataset": "digits", "test_images": 8, "rows": [row], "model": CHAIN}
    with tempfile.TemporaryDirectory() as name:
        run_dir, sweep = _as_run(Path(name)), _as_sweep(Path(name)).path
        places = {each: run_dir / each for each in ("config.json", "metrics.jsonl")}
        places |= {each: sweep / _in_sweep(each) for each in ("plan.json", "result.json", "sweep.json")}
        search = _as_search(Path(name)).path
        places |= {each: search / each for each in (sweeps.SEARCH_FILE, FIT_FILE)}
        found = {each: place.read_bytes() for each, place in places.items()}
    return found | {"compare.json": records.encoded(runs.COMPARISON_KIND, document)}


def _raw_seeds() -> list[bytes]:
    names = sorted(READERS)
    return [bytes([names.index(each) + 8 * len(names)]) + b"\n" + data for each, data in _contents().items()]


def _sealed_seeds() -> list[bytes]:
    found = []
    for each, data in _contents().items():
        lines = [json.loads(line) for line in data.splitlines()] if each.endswith("l") else [json.loads(data)]
        for line in lines:
            del line[records.VERSION], line[records.DIGEST]
        found.append(json.dumps({"file": each, "content": lines if each.endswith("l") else lines[0]}).encode())
    return found


RECORDS = {
    "records": Target(read_raw, _raw_seeds),
    "records_sealed": Target(read_sealed, _sealed_seeds, json=True),
}
