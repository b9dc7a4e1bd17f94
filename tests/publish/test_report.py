"""`moe4 report`: what stands in the page, that it needs nothing else, and how Chromium shows it."""

import json
import re
import shutil
import struct
import subprocess
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from measured import TASK, write_measured_release
from typer.testing import CliRunner

from moe4.checkpoint.report_file import ReportRecipe
from moe4.cli.app import app
from moe4.errors import MissingFileError
from moe4.publish.charts import NUM_SHADES, heat_map
from moe4.publish.commands import recipe_toml
from moe4.publish.proof import Proof, read_proof
from moe4.publish.report_page import render_report
from moe4.recipe import Gptq, Recipe, load_recipe
from moe4.units import duration

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_measured_release(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(release: Path) -> str:
    return render_report(read_proof(release))


class Outline(HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed in its turn."""

    VOID = frozenset(("meta", "path", "circle", "br"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_figures_stand_in_the_page(page: str) -> None:
    text = Outline(page).text
    for figure in (
        "4.0 MB → 1.0 MB",
        "25.0 % of before",
        "99.80 %",  # 988 / 990
        "Of 1,000 answers, 3 became worse and 1 better.",
        "Two equally good models would often differ this much by chance (McNemar's exact test: p = 0.62).",
        "Had the release lost 0.78 points or more",
        "0.78 points",
        "27 November 2026",
        "the-source, 4.0 MB",
        "moe4 quantize SOURCE OUT --recipe recipe.toml --calibration CALIBRATION.jsonl",
        f"moe4 prove SOURCE OUT --task {TASK} --data 'my text.jsonl'",
        "vllm serve OUT --enable-auto-tool-choice --tool-call-parser kimi_k2",
        "moe4 serve OUT",
        "As expected",
        "0.00123 nats",
        "98.76 %",
        "97.5 %",
        "layer 2 expert 3 down_proj: not better",
        "1 h 02 min",
        "2.5 GB of memory",
        "3,456 tokens",
        "gptq.damping",
        "reached",
        "missed",
    ):
        assert figure in text, figure


def test_it_is_whole_and_needs_nothing_else(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    names = {tag for tag, _ in outline.tags}
    assert not names & {"script", "img", "link", "iframe", "object"}
    links = [
        value for _, attributes in outline.tags for key, value in attributes.items() if key in ("href", "src")
    ]
    anchors = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    assert len(links) > 8 and all(link and link[0] == "#" and link[1:] in anchors for link in links)
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_planted_faults_and_what_noticed_them(page: str, release: Path, tmp_path: Path) -> None:
    section = page.partition('<h2 id="power">')[2].partition("<h2")[0]
    text = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    assert "scales of one expert too large at no size tried from x 1.02 not tried" in text
    assert (
        "experts rounded to &lt;nearest&gt; not tried not tried from 8 experts not tried from 1 expert"
        in text
    )
    assert "this model&#39;s router has no bias" in text
    copy = shutil.copytree(release, tmp_path / "copy")
    (copy / "proof" / "power.json").unlink()
    assert "would have noticed" not in render_report(read_proof(copy))


def test_what_a_model_wrote_is_text(page: str) -> None:
    assert "<script>alert(1)</script>" in Outline(page).text
    assert "&lt;script&gt;alert(1)" in page
    assert "chats <of> mine.jsonl" in Outline(page).text


def test_it_can_be_read_without_seeing_it(page: str) -> None:
    outline = Outline(page)
    charts = [attributes for _, attributes in outline.tags if attributes.get("role") == "img"]
    assert len(charts) == 5
    assert all(len(chart["aria-label"] or "") > 30 for chart in charts)
    assert ("html", {"lang": "en"}) in outline.tags
    regions = [attributes for _, attributes in outline.tags if attributes.get("role") == "region"]
    assert regions and all(region["aria-label"] for region in regions)
    headings = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(deeper - higher <= 1 for higher, deeper in pairwise(headings))
    num_tables = sum(tag == "table" for tag, _ in outline.tags)
    assert num_tables == sum(tag == "caption" for tag, _ in outline.tags)


def test_flipped_answers_stand_side_by_side(page: str) -> None:
    flips = page.split('<div class="flip">')[1:]
    assert len(flips) == 3
    text = Outline(page).text
    assert "so 1\n#### 7" in text and "1 more is in answers.json" in text
    before, after = flips[0].split('<div class="')[2:4]
    assert before.startswith("right") and "Before" in before
    assert after.startswith("wrong") and "After" in after


def test_the_recipe_on_the_page_makes_the_same_release(tmp_path: Path) -> None:
    """What is written as recipe.toml reads as the recipe that was resolved, whatever texts it holds."""
    recipe = Recipe(group_size=64, memory_budget="4GiB", gptq=Gptq(damping=0.05, activation_order=False))
    found = ReportRecipe.model_validate({**recipe.to_dict()})
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(found))
    assert load_recipe(path) == recipe
    odd = 'a "b" \\ \x7f\n\u202e\U000e0041 é'
    text = recipe_toml(
        ReportRecipe.model_validate({**recipe.to_dict(), "note": odd, odd: {odd: [odd, True]}})
    )
    read = tomllib.loads(text)
    assert read["note"] == odd and read[odd] == {odd: [odd, True]}


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough(page: str, theme: int) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what a chart draws."""
    block = page.split(":root {")[1 + theme].split("}")[0]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for ink in ("text", "quiet", "link", "good", "bad"):
        assert contrast(ink, "ground") >= 4.5, ink
        assert contrast(ink, "panel") >= 4.5, ink
    for ink in ("one", "two"):
        assert contrast(ink, "ground") >= 3, ink
    shades = [luminance(colours[f"h{n}"]) for n in range(NUM_SHADES)]
    assert shades == sorted(shades, reverse=theme == 0)


def test_a_large_models_map_stays_small() -> None:
    rows = [[float((x * 7 + y) % 100) for x in range(384)] for y in range(60)]
    svg = heat_map(rows, [f"layer {y}" for y in range(60)], "Error", "Text")
    assert len(svg) < 1_000_000
    assert svg.count("<path") == NUM_SHADES
    assert svg.count("z") >= 384 * 60


def test_results_that_are_not_there_are_left_out(release: Path, tmp_path: Path) -> None:
    page = render_report(read_proof(release, tmp_path))
    text = Outline(page).text
    assert "Tool calls" not in text
    assert "Evaluation" not in text
    assert "Error of every expert" in text
    with pytest.raises(MissingFileError, match=r"it has no moe4-report\.json"):
        read_proof(release.parent / "source")


def test_every_file_of_the_release_is_listed(release: Path) -> None:
    path = release / "moe4-report.json"
    data = json.loads(path.read_text())
    others = {
        name: {"num_bytes": 1234, "sha256": f"{n:064x}"} for n, name in enumerate(["a.json", "LICENSE"])
    }
    data["release"]["files"] = {**data["release"]["shards"], **others}
    path.write_text(json.dumps(data))
    page = render_report(read_proof(release))
    table = page[page.index("Every file of the release") :]
    for name, facts in data["release"]["files"].items():
        row = f'<th scope="row">{name}</th><td class="n" data-label="size">'
        assert table.count(row) == 1
        assert facts["sha256"] in table[table.index(row) :].partition("</tr>")[0]


def test_durations() -> None:
    assert [duration(s) for s in (1.25, 200, 7500)] == ["1.2 s", "3 min 20 s", "2 h 05 min"]


def test_the_command(release: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.html"
    result = CliRunner().invoke(app, ["report", str(release), "-o", str(path)])
    assert result.stdout.strip() == str(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def chromium(page: Path, *options: str) -> bytes:
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    result = subprocess.run(
        [*map(str, command), profile, *options, page.as_uri()], capture_output=True, timeout=240, check=True
    )
    return result.stdout


def read_png(path: Path) -> tuple[int, int, list[bytes]]:
    """Return width, height and the rows of RGB(A) bytes of an 8-bit PNG, filters undone."""
    data, place, packed = path.read_bytes(), 8, b""
    width = height = channels = 0
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
            channels = {2: 3, 6: 4}[body[9]]
        elif kind == b"IDAT":
            packed += body
        place += 12 + length
    return width, height, list(unfilter(zlib.decompress(packed), width * channels, channels))


def unfilter(raw: bytes, stride: int, step: int) -> Iterator[bytes]:
    before = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride):
            left = row[i - step] if i >= step else 0
            corner = before[i - step] if i >= step else 0
            up = before[i]
            if kind == 4:
                guess = left + up - corner
                distances = (abs(guess - left), abs(guess - up), abs(guess - corner))
                add = (left, up, corner)[distances.index(min(distances))]
            else:
                add = (0, left, up, (left + up) // 2)[kind]
            row[i] = (row[i] + add) & 255
        yield bytes(row)
        before = row


MEASURE = """<script>
  const html = document.documentElement, clipped = [];
  const boxes = [html, ...document.querySelectorAll('main *, nav')].filter(e => !(e instanceof SVGElement));
  for (const box of boxes)
    if (box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display !== 'inline')
      clipped.push(`${box.tagName}.${box.className}`);
  for (const cell of document.querySelectorAll('td, th, li, pre, p, svg')) {
    const edges = cell.getBoundingClientRect();
    if (edges.right > html.clientWidth + 1) clipped.push(`${cell.tagName} beyond the edge`);
  }
  const dark = getComputedStyle(document.body).backgroundColor;
  const charts = [...document.querySelectorAll('.chart')];
  const flat = charts.filter(c => c.getBoundingClientRect().width < 200).length;
  parent.report(JSON.stringify({width: html.clientWidth, clipped, dark, flat}));
</script>"""
LONG = "one_very_long_name_" * 12


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_clipped(release: Path, tmp_path: Path, width: int, theme: str) -> None:
    """No table, chart or text is wider than its box, whatever the names; a frame is the screen."""
    for name in (TASK, LONG):
        page = render_report(with_task_named(release, name)).replace("</body>", MEASURE + "</body>")
        frame = tmp_path / "frame.html"
        frame.write_text(
            "<!doctype html><title></title><script>report = found => document.title = found</script>"
            f'<iframe style="width:{width}px;height:4000px;border:0" srcdoc="{escape(page)}"></iframe>',
            encoding="utf-8",
        )
        colours = ("--blink-settings=preferredColorScheme=0",) if theme == "dark" else ()
        dom = chromium(
            frame, "--window-size=1400,900", "--virtual-time-budget=2000", *colours, "--dump-dom"
        ).decode()
        found = json.loads(unescape(re.search(r"<title>(.*?)</title>", dom).group(1)))  # type: ignore[union-attr]
        assert found["clipped"] == []
        assert found["width"] == width and found["flat"] == 0
        assert found["dark"] == ("rgb(20, 23, 27)" if theme == "dark" else "rgb(255, 255, 255)")


def with_task_named(release: Path, name: str) -> Proof:
    """The release's results, with a task and a token of this name."""
    proof = read_proof(release)
    assert proof.evaluation is not None and proof.comparison is not None
    (task,) = proof.evaluation.tasks.values()
    worst = [token.model_copy(update={"token": name}) for token in proof.comparison.worst_tokens]
    return replace(
        proof,
        evaluation=proof.evaluation.model_copy(update={"tasks": {name: task}}),
        comparison=proof.comparison.model_copy(update={"worst_tokens": worst, "data": name}),
    )


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_it_can_be_printed_and_is_not_blank(page: str, tmp_path: Path) -> None:
    path, picture, print_out = (tmp_path / name for name in ("page.html", "page.png", "page.pdf"))
    path.write_text(page, encoding="utf-8")
    chromium(path, "--window-size=500,400", f"--screenshot={picture}")
    chromium(path, f"--print-to-pdf={print_out}")
    width, height, rows = read_png(picture)
    assert (width, height) == (500, 400)
    assert len({row[n : n + 3] for row in rows[::8] for n in range(0, len(row), 12)}) > 5
    assert print_out.read_bytes().startswith(b"%PDF")
