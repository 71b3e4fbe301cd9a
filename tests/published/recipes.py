"""Published accuracies: train the recipes in configs/published, execute them as integers, and record the results.

    python tests/published/recipes.py train [NAME...]      train these recipes, or resume them; teachers first
    python tests/published/recipes.py collect [NAME...]    execute them on all test images, into results.json
    python tests/published/recipes.py check [NAME...]      execute them, and compare with results.json instead

Without a NAME, all recipes. Each is a sweep, `qattrain sweep --config configs/published/NAME.toml --name NAME`; a
teacher is a single run. Runs are in QATTRAIN_RUNS_DIR (default `runs`), MNIST in QATTRAIN_DATA_DIR. Nothing is
selected: the last epoch of every seed counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "configs" / "published"
RESULTS = ROOT / "runs" / "published" / "results.json"
RUNS = ROOT / os.environ.get("QATTRAIN_RUNS_DIR", "runs")
LEFT_OUT = "trials"  # tried and removed: recipe and code are in the commit that its environment names
COMPARISONS = ("widths", "quantizers", "mixed", "ablation", LEFT_OUT)  # many rows, none meant for export: not run in C
ENVIRONMENT = ("qattrain", "commit", "python", "packages", "cpu", "cpu_cores", "cpu_capability")
SAME = ("method", "bits", "act_bits", "quantizer", "settings", "epochs")  # for all seeds of a row
EXECUTED = ("test_accuracy", "integer_accuracy")


def names() -> list[str]:
    """All recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read(name: str) -> dict[str, Any]:
    """The recipe as written in its file."""
    return tomllib.loads((RECIPES / f"{name}.toml").read_text())


def is_single(name: str) -> bool:
    """Whether the recipe is a single run (a teacher), not a sweep."""
    return name != LEFT_OUT and "sweep" not in read(name)


def teachers(name: str) -> list[str]:
    """The recipes that train this one's teachers."""
    recipe = read(name)
    tables = recipe.get("sweep", [])
    named = [recipe.get("distill", {}).get("teacher")]
    for table in tables if isinstance(tables, list) else [tables]:
        named += table.get("distill", {}).get("teacher", [])
    return [teacher for teacher in named if teacher is not None]


def command(name: str) -> list[str]:
    """The command that trains the recipe."""
    verb = "train" if is_single(name) else "sweep"
    return ["qattrain", verb, "--config", f"configs/published/{name}.toml", "--name", name]


def train(asked: list[str]) -> None:
    """Train the recipes one after another; finished runs are kept, stopped ones resumed."""
    first = [teacher for name in asked for teacher in teachers(name)]
    for name in dict.fromkeys(first + asked):
        line = command(name)
        if is_single(name) and (RUNS / name / "last.pt").exists():
            line = ["qattrain", "train", "--resume", name]
        sys.stderr.write(f"$ {' '.join(line)}\n")
        subprocess.run([sys.executable, "-m", *line], cwd=ROOT, check=True)


def collect(name: str) -> dict[str, Any]:
    """All rows of a trained recipe, with the command and the environment of its runs."""
    from qattrain.experiments.folder import SweepFolder, sweep_document

    if is_single(name):
        config = json.loads((RUNS / name / "config.json").read_text())["config"]
        row = {"method": "fp32", "bits": 32, "act_bits": 32, "quantizer": "float", "settings": {}}
        cells = [(RUNS / name, row | {"epochs": config["train"]["epochs"], "seed": config["seed"]})]
    else:
        folder = SweepFolder(RUNS / name)
        plan = folder.read_plan()
        assert plan is not None, f"{folder.path} has no sweep: train it first"
        document = sweep_document(plan, folder, [])
        assert document["finished"] == document["cells"], f"{name}: not all cells are finished"
        cells = [(folder.path / row["run_dir"], row) for row in document["rows"]]
    rows: dict[str, dict[str, Any]] = {}
    environment: dict[str, Any] = {}  # of the first run
    for run_dir, row in cells:
        recorded = json.loads((run_dir / "config.json").read_text())
        environment = environment or {key: recorded["environment"][key] for key in ENVIRONMENT}
        same = {key: row[key] for key in SAME} | shape(recorded["config"])
        found = rows.setdefault(json.dumps(same), {**same, "seeds": []})
        found["seeds"].append(row["seed"])
        for key, value in executed(run_dir, recorded["config"], name not in COMPARISONS).items():
            found.setdefault(key, []).append(value)
    return {
        "command": " ".join(command(name)),
        "environment": environment,
        "rows": [summarized(row) for row in rows.values()],
    }


def shape(config: dict[str, Any]) -> dict[str, Any]:
    """The widths of its layers, and the bits of layers that differ from the rest."""
    from qattrain.config import ModelConfig

    chain = ModelConfig.model_validate(config["model"]).chain
    return {"widths": list(chain.widths), "layer_bits": config["quant"]["layer_bits"]}


def executed(run_dir: Path, config: dict[str, Any], in_c: bool) -> dict[str, Any]:
    """One run on all test images: accuracy in torch, as integers and in C, sizes in bytes, training time in seconds."""
    from qattrain.evaluation.checkpoints import evaluate_checkpoint, load_test_data
    from qattrain.evaluation.inspection import integer_costs
    from qattrain.evaluation.networks import Trained
    from qattrain.export import EXPORTERS
    from qattrain.export.base import verify
    from qattrain.files import cache_dir
    from qattrain.layers.network import weight_bytes

    path = run_dir / "last.pt"
    data_dir = Path(os.environ.get("QATTRAIN_DATA_DIR", cache_dir()))
    outcome = evaluate_checkpoint(path, data_dir, verify=True)
    network, result, mismatches = outcome.network, outcome.evaluation, outcome.mismatches
    assert isinstance(network, Trained)
    assert (config["data"]["dataset"], result.total) == ("mnist", 10_000), run_dir
    history = network.checkpoint.history
    assert history[-1]["test_accuracy"] == result.accuracy, run_dir
    found: dict[str, Any] = {
        "test_accuracy": result.accuracy,
        "integer_accuracy": None,
        "differing_predictions": mismatches and mismatches.predictions,
        "differing_images": mismatches and mismatches.logits,
        "c_differing_logits": None,
        "weight_bytes": weight_bytes(network.model),
        "other_bytes": None,
        "train_seconds": None if config["ptq"] else sum(record["epoch_seconds"] for record in history),
    }
    if config["data"]["val_split"]:
        found["held_out_accuracy"] = history[-1]["val_accuracy"]
    if mismatches is not None:
        integers = network.integers()
        correct = int((mismatches.integer_predictions == outcome.test.labels).sum())
        if in_c:
            images = load_test_data(network, path, data_dir).test.images.numpy()
            files = EXPORTERS["c"].write(integers, network.facts, "packed")
            verify(EXPORTERS["c"], files, integers, images)  # raises ExportError if one logit differs
            found["c_differing_logits"] = 0
        total_bytes = sum(cost.total_bytes for cost in integer_costs(integers).values())
        found |= {
            "integer_accuracy": correct / result.total,
            "other_bytes": total_bytes - weight_bytes(network.model),
        }
    return found


def accuracies(row: dict[str, Any]) -> list[float]:
    """One per seed: on the held-out images if the recipe holds some out, else of the integers if there are any."""
    key = "test_accuracy" if None in row["integer_accuracy"] else "integer_accuracy"
    found: list[float] = row.get("held_out_accuracy", row[key])
    return found


def summarized(row: dict[str, Any]) -> dict[str, Any]:
    """The row with mean and standard deviation over the seeds."""
    for key in ("weight_bytes", "other_bytes"):
        (row[key],) = set(row[key])
    found = accuracies(row)
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return row | {"mean": statistics.mean(found), "standard_deviation": deviation}


def differences(found: dict[str, Any], published: dict[str, Any]) -> list[str]:
    """A readable line for each list of accuracies that differs from the published one."""
    lines = []
    for mine, theirs in zip(found["rows"], published["rows"], strict=True):
        for key in EXECUTED:
            if mine[key] != theirs[key]:
                bits = f"{mine['bits']}/{mine['act_bits']}"
                lines.append(f"{mine['method']} {bits} {key}: {mine[key]}, not {theirs[key]}")
    return lines


if __name__ == "__main__":
    verb, asked = sys.argv[1], sys.argv[2:] or names()
    if verb == "train":
        train(asked)
    elif verb == "collect":
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for recipe in asked:
            results[recipe] = collect(recipe)
            RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            for row in results[recipe]["rows"]:
                bits = f"{row['bits']}/{row['act_bits']}"
                sys.stderr.write(f"{recipe} {row['method']} {bits} {row['mean']} {row['standard_deviation']}\n")
    elif verb == "check":
        published = json.loads(RESULTS.read_text())
        for recipe in asked:
            lines = differences(collect(recipe), published[recipe])
            sys.stderr.write(f"{recipe} {'; '.join(lines) or 'agrees'}\n")
    else:
        sys.exit(f"{verb!r}: allowed: train, collect, check")
