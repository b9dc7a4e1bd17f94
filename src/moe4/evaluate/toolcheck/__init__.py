"""`moe4 toolcheck`: does a server call tools as its model should? (docs/toolcheck.md)."""

from moe4.evaluate.toolcheck.run import ToolcheckOptions, run_toolcheck
from moe4.evaluate.toolcheck.summary import describe, failed_checks

__all__ = ["ToolcheckOptions", "describe", "failed_checks", "run_toolcheck"]
