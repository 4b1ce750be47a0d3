"""Networks as files for other runtimes: ONNX, PyTorch's export format, the Hugging Face Hub.

Nothing is kept under its name before its own runtime has computed what the network computes.
"""

from primesvt.exporting.agreement import Agreement
from primesvt.exporting.deploy import quick
from primesvt.exporting.result import ExportResult, Rounded, Size
from primesvt.exporting.run import export

__all__ = ["Agreement", "ExportResult", "Rounded", "Size", "export", "quick"]
