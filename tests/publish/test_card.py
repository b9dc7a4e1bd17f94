"""`moe4 card`: what hubs read of it, what people do, and what would be uploaded."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from measured import TASK, write_measured_release
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import CheckpointError, OutputError, UnsafePathError
from moe4.publish.card import CardNames
from moe4.publish.card_file import SECTION, update_card, write_card
from moe4.publish.proof import read_proof
from moe4.publish.push import check_repo, list_uploads


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_measured_release(tmp_path_factory.mktemp("card"))


@pytest.fixture
def release(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "a-release")


@pytest.fixture(scope="module")
def card(written: Path) -> str:
    return update_card(
        read_proof(written), CardNames(repo="me/a-release", base_model="them/source"), None
    ).text


def test_the_hubs_own_reader_understands_the_front_matter(card: str) -> None:
    data = ModelCard(card).data
    assert data.base_model == ["them/source"]
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "text-generation"
    assert {"int4", "w4a16", "compressed-tensors", "moe"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == (TASK, "exact_match", 98.8)
    assert ModelCard(card).data.to_dict()["base_model_relation"] == "quantized"


def test_figures_are_the_measured_ones(card: str) -> None:
    assert f"| {TASK} | 0 | 1,000 | 99.00 % | 98.80 % | 99.80 % |" in card
    assert "4.0 MB of weights became 1.0 MB\n(25.0%)" in card
    assert "| 99.31 % to 100.22 % | 0.78 points |" in card
    assert "Had the release lost 0.78 points or more" in card
    assert "KL divergence from the source 0.00123 nats a token" in card
    assert "| tool call f1 | 90.0 % | 85.0 % to 90.0 % |" in card
    assert "| routed experts a layer | 4 |" in card
    assert "24, of which 1 fell back" in card
    assert "It took 1 h 02 min, at most 2.5 GB of memory." in card
    assert "[LICENSE](LICENSE)" in card
    assert "- **Release Date:** 2026-11-27" in card
    assert (
        "on AMD EPYC, 2 CPUs: moe4 0.1.0, vllm 0.32.0, lm&#95;eval 0.4.13." in card
        or "lm_eval 0.4.13" in card
    )
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        "Model Overview",
        "Deployment",
        "Creation",
        "Evaluation",
        "Reproducibility",
        "Licence",
    ]


def test_planted_faults_and_what_noticed_them(card: str, release: Path) -> None:
    section = card.partition("### What this proof would have noticed")[2].partition("\n## ")[0]
    assert "| scales of one expert too large | at no size tried | from x 1.02 | not tried |" in section
    assert "| from 8 experts | not tried | from 1 expert |" in section
    assert "| another chat template | yes | not tried | not tried | no | not tried |" in section
    shown = re.search(rf"\| {re.escape(TASK)} .* ([\d.]+ points) \|", card.replace("\\_", "_"))
    assert shown is not None
    assert f"a loss of {shown[1]} or more" in section
    assert "Not tried: router's bias: this model's router has no bias." in section
    (release / "proof" / "power.json").unlink()
    assert "would have noticed" not in update_card(read_proof(release), CardNames(), None).text


def test_nothing_that_was_not_measured(release: Path) -> None:
    shutil.rmtree(release / "proof")
    card = update_card(read_proof(release), CardNames(repo="me/a-release"), None).text
    assert "Not measured." in card
    data = ModelCard(card).data
    assert data.eval_results is None
    assert data.base_model is None


def test_a_source_of_codes_is_named(release: Path) -> None:
    def card() -> str:
        return update_card(read_proof(release), CardNames(repo="me/a-release"), None).text

    assert "quantized again" not in card()
    path = release / "moe4-report.json"
    report = json.loads(path.read_text())
    report["source"]["quantized_again"] = {"model.layers.*.mlp.experts.*.up_proj.weight": 9}
    path.write_text(json.dumps(report))
    assert "| quantized again | 9 matrices are codes of at most 8 bits in the source" in card()


def test_deployments_are_this_releases(card: str) -> None:
    assert "vllm serve me/a-release --enable-auto-tool-choice --tool-call-parser kimi_k2" in card
    blocks = dict(re.findall(r"### ([\w ]+)\n\n```\w+\n(.*?)\n```", card, re.DOTALL))
    assert "podman run" in blocks["podman"]
    kinds = {document["kind"] for document in yaml.safe_load_all(blocks["KServe"])}
    assert {"ServingRuntime", "InferenceService"} <= kinds
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code) == 2
    for block in code:
        compile(block, "card", "exec")


def test_a_release_that_needs_the_plugin_on_gpus_says_so(tmp_path: Path) -> None:
    release = write_measured_release(tmp_path, 128)  # the inner width is 128
    result = CliRunner().invoke(app, ["card", str(release), "--push", "someone/mine", "--dry-run"])
    assert result.exit_code == 0, result.output
    card = result.stdout
    assert "vllm serve someone/mine" in card
    assert (
        "Install moe4 beside vLLM, whose plugin this release needs on GPUs: the experts' inner width" in card
    )
    assert "Not with this release: " in card


def test_the_command_and_the_dry_run(release: Path) -> None:
    dry = CliRunner().invoke(app, ["card", str(release), "--push", "me/mine", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert not (release / "README.md").exists()
    assert "# mine" in dry.stdout
    assert "files, " in dry.stderr
    assert "to https://huggingface.co/me/mine" in dry.stderr
    written = CliRunner().invoke(app, ["card", str(release), "--json"])
    assert json.loads(written.stdout) == {
        "card": str(release / "README.md"),
        "written": True,
        "uploaded": None,
    }
    assert "your-name/a-release" in (release / "README.md").read_text(encoding="utf-8")


def test_nothing_is_sent_without_a_yes(release: Path) -> None:
    result = CliRunner().invoke(app, ["card", str(release), "--push", "me/mine", "--json"], input="n\n")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["uploaded"] is None
    assert "README.md" in answer["files"]


def test_a_link_is_refused_before_the_card_is_written(release: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (release / "extra.txt").symlink_to(tmp_path / "secret")
    result = CliRunner().invoke(app, ["card", str(release), "--push", "me/mine", "--yes"])
    assert isinstance(result.exception, UnsafePathError)
    assert not (release / "README.md").exists()


def test_what_would_be_uploaded(release: Path) -> None:
    (release / ".git").mkdir()
    (release / ".git" / "config").write_text("")
    (release / ".env").write_text("SECRET=1")
    (release / "x.partial").write_text("")
    names = [upload.name for upload in list_uploads(release)]
    assert "proof/evaluation.json" in names
    assert "moe4-report.json" in names
    assert not [name for name in names if name.startswith(".") or name.endswith(".partial")]
    (release / ".moe4").mkdir()
    with pytest.raises(CheckpointError, match="unfinished release"):
        list_uploads(release)


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "../x", "a b/c", "/x"])
def test_odd_repositories_are_refused(repo: str) -> None:
    with pytest.raises(OutputError, match="expected OWNER/NAME"):
        check_repo(repo, "repo")


OURS = CardNames(repo="me/a-release", base_model="them/source")


def test_what_its_user_wrote_stays(release: Path) -> None:
    """Lines between, above and below; a changed section; front matter with comments: all stay."""
    first = write_card(read_proof(release), OURS).text
    path = release / "README.md"
    notes = "## Notes\n\nMine,  with `code` and <b>tags</b>.\n"
    mine = first.replace("<!-- moe4:deployment", f"{notes}\n<!-- moe4:deployment", 1)
    mine = mine.replace("## Creation", "## Creation\n\nMade on a rainy day.", 1) + "\nThe end, by me.\n"
    mine = mine.replace("library_name: transformers", "library_name: mine  # a comment\nlanguage:\n- de", 1)
    mine = mine.replace("- moe4\n", "- moe4\n- my-tag\n", 1)
    path.write_text(mine)
    rewrite(release / "proof" / "evaluation.json", {"tasks": {TASK: {"release": {"exact_match": 0.5}}}})
    again = write_card(read_proof(release), CardNames())
    assert again.kept == ("creation",)
    for text in (notes, "Made on a rainy day.", "\nThe end, by me.\n", "library_name: mine  # a comment"):
        assert text in again.text
    assert "| 50.00 % |" in again.text and "98.80 %" not in again.text
    data = ModelCard(again.text).data
    assert (data.language, data.base_model, data.library_name) == (["de"], ["them/source"], "mine")
    assert "my-tag" in data.tags and data.eval_results[0].metric_value == 50.0
    assert "vllm serve me/a-release " in again.text  # the repository was named once
    assert write_card(read_proof(release), CardNames()).text == again.text
    outside = SECTION.sub("", again.text)
    assert outside == SECTION.sub("", mine).replace("98.8", "50.0")


def test_a_section_that_was_removed_is_written_in_its_place(release: Path) -> None:
    first = write_card(read_proof(release), OURS).text
    path = release / "README.md"
    for name in ("title", "creation", "licence"):
        (block,) = [match.group() for match in SECTION.finditer(first) if match["name"] == name]
        path.write_text(first.replace(block, ""))
        found = write_card(read_proof(release), CardNames()).text
        assert re.sub(r"\n+", "\n", found) == re.sub(r"\n+", "\n", first), name


OTHER = "{task: {type: t}, dataset: {type: mmlu, name: m}, metrics: [{type: acc, value: 1}]}"


@pytest.mark.parametrize(
    "front", ["", f"---\nlicense: mit\nmodel-index:\n- name: x\n  results: [{OTHER}]\n---\n"]
)
def test_another_card_stays_whole(release: Path, front: str) -> None:
    text = "# My own\n\nWritten by hand.\r\n\n```yaml\n---\na: b\n---\n```\n"
    (release / "README.md").write_bytes((front + text).encode())
    found = write_card(read_proof(release), OURS).text
    assert text.replace("\r", "").strip() in found
    assert found.index("# My own") < found.index("## Model Overview")
    data = ModelCard(found).data
    assert data.license == ("mit" if front else "apache-2.0")
    assert [result.dataset_type for result in data.eval_results] == [TASK, *(["mmlu"] if front else [])]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("---\na: [\n---\n", "front matter is not YAML"),
        ("---\n- a\n---\n", "is not a mapping"),
        ("---\nmodel-index: 3\n---\n", "model-index in its front matter is not a list"),
        ("---\nmodel-index: [3]\n---\n", "model-index in its front matter is not a list"),
    ],
)
def test_front_matter_that_cannot_be_read_is_refused(release: Path, content: str, complaint: str) -> None:
    path = release / "README.md"
    path.write_text(content)
    with pytest.raises(OutputError, match=complaint):
        write_card(read_proof(release), OURS)
    assert path.read_text() == content


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change values of a JSON file, nested as they are given."""

    def merge(old: Any, new: Any) -> Any:
        if not isinstance(new, dict):
            return new
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}

    path.write_text(json.dumps(merge(json.loads(path.read_text()), change)))
