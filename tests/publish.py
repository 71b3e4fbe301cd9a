"""Published figures: from run folders into `runs/published/accuracy.json`, from there into the README's tables.

    python tests/publish.py collect RUNS_DIR     read the runs named in ROWS, for every seed, and write the JSON
    python tests/publish.py render               rewrite the README's tables from the JSON

`tests/test_published.py` fails when README and JSON differ.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "runs" / "published" / "accuracy.json"
README = ROOT / "README.md"
SEEDS = (0, 1, 2)

# (title, command without the seed, run name without the seed)
ROWS = (
    ("float", "qattrain train --bits 32 --epochs 10", "lenet-w32a32-float-mnist"),
    ("QAT lsq, W4A4", "qattrain train --bits 4 --epochs 10", "lenet-w4a4-lsq-mnist"),
    ("QAT lsq, W2A2", "qattrain train --bits 2 --epochs 10", "lenet-w2a2-lsq-mnist"),
    ("QAT binary, W1A2", "qattrain train --bits 1 --act-bits 2 --epochs 10", "lenet-w1a2-lsq-mnist"),
    ("QAT lsq, W4A4, 1 epoch", "qattrain train --bits 4 --epochs 1", "lenet-w4a4-lsq-mnist-e1"),
    ("QAT pow2, W4A4, 5 epochs", "qattrain train --quantizer pow2 --bits 4 --epochs 5", "lenet-w4a4-pow2-mnist"),
    ("QAT affine, W8A8, 5 epochs", "qattrain train --quantizer affine --bits 8 --epochs 5", "lenet-w8a8-affine-mnist"),
    ("PTQ affine, W8A8", "qattrain ptq FLOAT --bits 8", "lenet-w8a8-affine-ptq-mnist"),
    ("PTQ affine, W4A4", "qattrain ptq FLOAT --bits 4", "lenet-w4a4-affine-ptq-mnist"),
    ("PTQ affine, W3A3", "qattrain ptq FLOAT --bits 3", "lenet-w3a3-affine-ptq-mnist"),
    ("PTQ affine, W2A2", "qattrain ptq FLOAT --bits 2", "lenet-w2a2-affine-ptq-mnist"),
)


def collect(runs_dir: Path) -> dict[str, Any]:
    """The document of all rows: every seed's last-epoch accuracy on all 10,000 test images, mean and deviation."""
    rows, environment = [], None
    for title, command, name in ROWS:
        accuracies = []
        for seed in SEEDS:
            run_dir = runs_dir / f"{name}-s{seed}"
            recorded = json.loads((run_dir / "config.json").read_text())
            assert recorded["config"]["seed"] == seed, run_dir
            assert recorded["config"]["data"] == recorded["config"]["data"] | {"dataset": "mnist", "limit_test": None}
            environment = recorded["environment"]
            accuracies.append(json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"])
        rows.append(
            {
                "title": title,
                "command": command,
                "seeds": list(SEEDS),
                "test_accuracy": accuracies,
                "mean": statistics.mean(accuracies),
                "standard_deviation": statistics.stdev(accuracies),
            }
        )
    assert environment is not None
    kept = ("qattrain", "python", "packages", "cpu", "cpu_cores", "cpu_capability")
    note = (
        "last epoch, all 10,000 test images, all layers quantized; each command with --threads 1 --seed N; "
        "FLOAT is the float run of the same seed"
    )
    return {"note": note, "threads": 1, "environment": {key: environment[key] for key in kept}, "rows": rows}


def accuracy_table(document: dict[str, Any]) -> str:
    """The README's table, Markdown."""
    seeds = ", ".join(map(str, document["rows"][0]["seeds"]))
    lines = [f"| network | command | mean of seeds {seeds} | standard deviation | each |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in row["test_accuracy"])
        mean, deviation = f"{100 * row['mean']:.2f} %", f"{100 * row['standard_deviation']:.2f}"
        lines.append(f"| {row['title']} | `{row['command']}` | {mean} | {deviation} | {each} |")
    return "\n".join(lines)


def with_table(text: str, name: str, table: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced by `table`."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, marker, after = rest.partition(end)
    assert marker, f"README.md has no {start.strip()} ... {end.strip()}"
    return before + start + table + end + after


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        PUBLISHED.write_text(json.dumps(collect(Path(sys.argv[2])), indent=1) + "\n")
    README.write_text(with_table(README.read_text(), "accuracy", accuracy_table(json.loads(PUBLISHED.read_text()))))
