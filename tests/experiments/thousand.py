"""Makes the folder of a sweep of 1,000 finished cells in RUNS: `python thousand.py DIRECTORY`."""

import json
import sys
from pathlib import Path

from qattrain.config import parse_config
from qattrain.experiments.folder import Cell, Plan, cell_name, find_sweep
from qattrain.experiments.grid import expand, read_grid

grid = read_grid(None, [], {("quant", "bits"): [2, 4], ("data", "dataset"): ["digits"], ("seed",): list(range(500))})
folder = find_sweep(None, grid.asked(), Path(sys.argv[1]) / "runs")
folder.make()
cells = []
for point in expand(grid):
    quant = point.config["quant"] | {"act_bits": point.config["quant"]["bits"]}
    train = point.config["train"] | {"threads": 1, "lr": 0.05, "batch_size": 32, "weight_decay": 0.0}
    config = parse_config(point.config | {"quant": quant, "train": train}, "thousand").model_dump(mode="json")
    cells.append(Cell(cell_name(config), config, None))
    run_dir = folder.cells / cells[-1].name
    run_dir.mkdir()
    (run_dir / "last.pt").touch()
    result = {"epochs": 10, "accuracy": 0.9, "loss": 0.1, "train_loss": 0.1, "weight_bytes": 1000}
    (run_dir / "result.json").write_text(json.dumps(result | {"images_per_second": 1000.0}))
folder.write_plan(Plan(grid.asked(), grid.axes, cells))
