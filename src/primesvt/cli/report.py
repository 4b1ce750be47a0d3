"""``primesvt report``: write the HTML page of a run, or of several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the page of a run, or one page that compares several.

    what you get:
      One HTML file that needs no network and no scripts. Of one run: report.html
      in its folder, made anew from the figures there. Of several: limits, savings,
      accuracies and costs side by side, plans, and in which settings they differ.

    examples:
      primesvt report runs/sdt_v2_digits
      primesvt report runs/mild runs/strict runs/paper --out compared.html
    """

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN ...", help_behavior_hint=""),
    ]
    """Folders of runs that have ended."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The page; report.html in the run folder, or comparison.html here for several runs."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Write the page and say where it is."""
        from primesvt._files import check_place, file_lock, folder_lock
        from primesvt.report import write_comparison, write_report

        if not self.runs:
            raise ValueError("no run given; name one, as in `primesvt report runs/sdt_v2_digits`")
        if self.out is not None and self.out.is_dir():
            raise ValueError(f"--out {self.out} is a folder; name a file, such as compared.html")
        if self.out is not None:
            check_place(self.out)
        if len(self.runs) > 1:
            with file_lock(self.out or "comparison.html") as out:
                path = write_comparison(self.runs, out)
        elif self.out is not None:
            with file_lock(self.out) as out:
                path = write_report(self.runs[0], out)
        elif self.runs[0].is_dir():
            with folder_lock(self.runs[0]) as run:
                path = write_report(run)
        else:
            path = write_report(self.runs[0])  # which says what is missing
        console.result({"runs": [str(run) for run in self.runs], "report": str(path)})
        console.line(f"The {'report' if len(self.runs) == 1 else 'comparison'}: {path}")
        return 0
