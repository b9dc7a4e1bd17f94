"""Findings as SARIF 2.1.0, which code hosts show beside the lines."""

from typing import Any

from moe4 import __version__
from moe4.deploy.lint.finding import RULES, Finding
from moe4.escape import uri_path

LEVELS = {"error": "error", "warning": "warning", "unread": "warning", "note": "note"}
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(findings: list[Finding]) -> dict[str, Any]:
    """Return a SARIF log of one run."""
    rules = list(RULES)
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "moe4 lint",
                        "version": __version__,
                        "rules": [
                            {
                                "id": name,
                                "shortDescription": {"text": rule.title},
                                "defaultConfiguration": {"level": LEVELS[rule.level]},
                            }
                            for name, rule in RULES.items()
                        ],
                    }
                },
                "results": [_result(finding, rules.index(finding.rule)) for finding in findings],
            }
        ],
    }


def _result(finding: Finding, rule_index: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": uri_path(finding.file.as_posix())},
            "region": {"startLine": finding.line, "startColumn": finding.column},
        }
    }
    if finding.path:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.path}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": LEVELS[finding.level],
        "message": {"text": f"{finding.why}. Fix: {finding.fix}."},
        "locations": [location],
    }
