"""Pages about runs: one run in full, or several side by side; each a single file that stands alone.

Made from nothing but the files of run folders (docs/report.md).
"""

from primesvt.report.changes import Change, changes, headline
from primesvt.report.comparison import write_comparison
from primesvt.report.page import write_report

__all__ = ["Change", "changes", "headline", "write_comparison", "write_report"]
