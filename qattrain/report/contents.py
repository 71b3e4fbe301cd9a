"""What a report's page says: its title, a line below it, its sections."""

from collections.abc import Sequence

from qattrain.report.blocks import Section
from qattrain.report.console import counted
from qattrain.report.findings import Finding
from qattrain.report.network_sections import network_sections
from qattrain.report.reproduction import Flags
from qattrain.report.sources import Sweep
from qattrain.report.sweep_sections import sweep_sections

MOST_NAMES = 4  # in a title


def page_contents(findings: Sequence[Finding], sweeps: Sequence[Sweep], flags: Flags) -> tuple[str, str, list[Section]]:
    """Title, lead and sections of a report on these sweeps and networks."""
    names = [*(sweep.folder.name for sweep in sweeps), *(finding.name for finding in findings)]
    title = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    subjects = [counted(len(things), noun) for things, noun in ((sweeps, "sweep"), (findings, "network")) if things]
    datasets = dict.fromkeys(finding.facts.dataset for finding in findings)
    trained_on = f", on {', '.join(datasets)}" if datasets else ""
    sections = [s for n, sweep in enumerate(sweeps, start=1) for s in sweep_sections(sweep, f"sweep-{n}")]
    if findings:
        sections += network_sections(findings, flags)
    return f"Report: {title}", f"{' and '.join(subjects)}{trained_on}.".capitalize(), sections
