"""The tables of docs/probe-check.md and of the results page, from what the benchmarks wrote.

python -m probe_faults.report PROBED.json ANSWERS.json        (in the folder benchmarks/)
"""

import json
import sys
from pathlib import Path
from typing import Any

from moe4.probe import check


def figures(verdict: dict[str, Any]) -> str:
    """Return a row's figures; typical and upper shifts are multiples of what rounding makes them."""
    cells = []
    for group in verdict["groups"]:
        for figure in ("typical", "upper"):
            ratio = group["shift"][figure] / group["bounds"][figure] * check.FACTORS[figure]
            cells.append(f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}")
    cells += [""] * (4 - len(cells))
    cells.append(str(verdict["wrong_tokens"]))
    cells += [f"{verdict['kl'][name]:.1e}" for name in ("mean", "worst")]
    return " | ".join(cells)


def faults_table(probed: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of all faults, the weakest first."""
    changed = {entry["name"]: entry["changed_answers"] for entry in answers}
    rows = [
        "| fault | kind | answers changed, of 50 | caught | prompts: typical | upper "
        "| decoded: typical | upper | wrong tokens | KL, mean | worst |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in sorted(
        probed, key=lambda entry: max(g["shift"]["typical"] for g in entry["verdict"]["groups"])
    ):
        if entry["kind"] == "none":
            continue
        caught = "**no**" if entry["verdict"]["ok"] else "yes"
        number = changed.get(entry["name"], "")
        rows.append(
            f"| {entry['name']} | {entry['kind']} | {number} | {caught} | {figures(entry['verdict'])} |"
        )
    return rows


def count(probed: list[dict[str, Any]], answers: list[dict[str, Any]], least: int) -> tuple[int, int]:
    """Return (faults that change at least so many answers, those of them that are caught)."""
    changed = {entry["name"]: entry["changed_answers"] for entry in answers}
    relevant = [
        entry
        for entry in probed
        if entry["kind"] not in ("none", "choice") and changed[entry["name"]] >= least
    ]
    return len(relevant), sum(not entry["verdict"]["ok"] for entry in relevant)


def servers_table(results: dict[str, Any]) -> list[str]:
    """Return a Markdown table of what real servers gave."""
    rows = [
        "| server | verdict | prompts: typical | upper | decoded: typical | upper | wrong tokens "
        "| KL, mean | worst |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, result in results.items():
        if "groups" in result:
            rows.append(f"| {name} | {'PASS' if result['ok'] else 'FAIL'} | {figures(result)} |")
    return rows


def rejudge(release: Path, probed: list[dict[str, Any]]) -> None:
    """Judge stored comparisons again, by the bounds as they are now."""
    expected = check.read_expected(str(release))
    for entry in probed:
        entry["verdict"] = check.judge(expected, [check.Comparison(*c) for c in entry["comparisons"]])


def main() -> None:
    """Print the tables: RELEASE PROBED ANSWERS [SERVERS...]."""
    release, probed_file, answers_file, *server_files = map(Path, sys.argv[1:])
    probed, answers = (json.loads(file.read_text()) for file in (probed_file, answers_file))
    rejudge(release, probed)
    print("\n".join(faults_table(probed, answers)))
    rounded = next((entry["answers"] for entry in probed if "answers" in entry), None)
    if rounded:
        exact = next(entry["answers"] for entry in answers if entry["kind"] == "none")
        differ = sum(a != b for a, b in zip(rounded, exact, strict=True))
        print(f"\nanswers that differ between bfloat16 and float32: {differ}")
    for least in (1, 2, 3, 5):
        print(
            f"faults that change {least} answers or more, and how many are caught:",
            count(probed, answers, least),
        )
    for file in server_files:
        print(f"\n{file.name}\n" + "\n".join(servers_table(json.loads(file.read_text()))))


if __name__ == "__main__":
    main()
