import base64
import copy
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from offline.report.command import main
from tests.support.evaluated import build, write
from tests.support.pages import Html, markdown_page, tex_tables

NANO = Path(__file__).parents[1] / "offline" / "nano_pool"
PICTURES = ("frontier", "reliability", "roc", "mix", "knobs")
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "a|b`c*_[x](http://evil.example/x.js)$y$ \\ {& % #} ~^\"'",
    "[--> ]]> &lt;b&gt; \u202e 漢字 λ\x07",
)


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return build()


@pytest.fixture
def changed(built: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def evaluation(built: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("evaluation"), built)


@pytest.fixture(scope="module")
def report(evaluation: Path) -> Path:
    assert main([str(evaluation)]) == 0
    return evaluation / "report"


def test_every_file_is_what_its_name_says(evaluation: Path, report: Path) -> None:
    for name in PICTURES:
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (report / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        assert ElementTree.parse(report / f"{name}.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (report / "results.parquet").read_bytes() == (evaluation / "results.parquet").read_bytes()
    assert not [file for file in report.iterdir() if file.name.startswith(".")]


def test_the_first_sentence_is_the_verdict(report: Path, built: dict[str, Any]) -> None:
    sentence = built["evaluation"]["verdict"]["sentence"]
    assert Html((report / "report.html").read_text()).first == sentence
    assert markdown_page((report / "report.md").read_text()).first.startswith(sentence)
    tex = (report / "table.tex").read_text()
    assert r"\caption{Routing beats the controls here: utility ($\lambda$) saves" in tex
    assert tex.index(r"\caption{Routing") == tex.index(r"\caption{")
    assert json.loads((report / "report.json").read_text())["verdict"]["sentence"] == sentence


def test_the_same_command_again_writes_the_same_bytes(
    evaluation: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in report.iterdir()}
    code, out, err = run(capsys, evaluation)
    printed = json.loads(out.splitlines()[-1])
    assert code == 0
    assert (printed["beats_controls"], printed["method"], printed["out"]) == (True, "utility", str(report))
    assert printed["sentence"] in err
    assert printed["files"] == sorted(before)
    assert [name for name in before if (report / name).read_bytes() != before[name]] == []


def test_all_outputs_show_the_same_figures(report: Path) -> None:
    tables = json.loads((report / "report.json").read_text())["tables"]
    page = Html((report / "report.html").read_text()).tables
    markdown = list(markdown_page((report / "report.md").read_text()).tables.values())
    tex = tex_tables((report / "table.tex").read_text())
    assert set(tex) == {"methods", "frontiers", "probes"}
    assert list(page) == list(tables)
    for table, on_github in zip(tables.values(), markdown, strict=True):
        cells = [
            [*row["heads"], *(f"{one['text']} {one['interval']}".strip() for one in row["figures"])]
            for row in table["rows"]
        ]
        in_page = [row for row in page[table["key"]][1:] if len(row) > 1]  # without the groups' names
        assert in_page == cells
        grouped = len({row["group"] for row in table["rows"]}) > 1
        assert [row[grouped:] for row in on_github[1:]] == cells
        if table["key"] in tex:
            in_print = [[cell.replace("λ", r"$\lambda$") for cell in row] for row in cells]
            assert tex[table["key"]] == [[cell.replace("_", r"\_") for cell in row] for row in in_print]


def test_figures_are_those_of_the_problems(report: Path) -> None:
    """Accuracy and saving computed anew from results.parquet."""
    frame = pd.read_parquet(report / "results.parquet")
    rows = json.loads((report / "report.json").read_text())["tables"]["methods"]["rows"]
    best_usd = frame["cost:large"].mean()
    for row in rows:
        chosen = frame[f"arm:{row['name']}"]
        success, usd = (
            sum(frame[f"{what}:{arm}"].where(chosen == arm, 0.0) for arm in chosen.unique()).mean()
            for what in ("success", "cost")
        )
        shown = {figure["text"] for figure in row["figures"]}
        assert {f"{100 * success:.1f}", f"{100 * (1 - usd / best_usd):.1f}"} <= shown


def test_the_best_is_bold_and_no_oracle_is(report: Path) -> None:
    methods = json.loads((report / "report.json").read_text())["tables"]["methods"]
    accuracy = [column["key"] for column in methods["columns"]].index("accuracy")
    rows = [row for row in methods["rows"] if not row["group"].startswith("Oracles")]
    best = max(rows, key=lambda row: row["figures"][accuracy]["value"])
    assert best["figures"][accuracy]["best"]
    assert {figure["best"] for row in methods["rows"] if row not in rows for figure in row["figures"]} == {False}
    assert rf"\textbf{{{best['figures'][accuracy]['text']}}}" in (report / "table.tex").read_text()
    # What is cheap and clearly worse saves most, and is best at nothing.
    saving = [column["key"] for column in methods["columns"]].index("saving")
    small = next(row for row in rows if row["name"] == "always:small")
    assert small["figures"][saving]["value"] > 0.9
    assert not small["figures"][saving]["best"]


def test_the_page_loads_nothing_and_runs_its_own_script_alone(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = Html(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on")}, tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "url(http" not in text
    assert "@import" not in text
    (policy,) = (one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy
    data = json.loads(page.scripts[0])
    assert [curve["name"] for curve in data["curves"]][:3] == ["always:small", "always:medium", "always:large"]


def test_names_are_text_wherever_they_stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name.replace("\x07", " ") for name in HOSTILE]  # no output can hold control characters
    out = tmp_path / "paper" / "figures"
    assert run(capsys, write(tmp_path, build(HOSTILE, n=60)), "--out", out)[0] == 0
    page = Html((out / "report.html").read_text())
    assert [row[0] for row in page.tables["arms"][1:]] == names
    assert "img" not in {tag for tag, _ in page.tags}
    assert len(page.scripts) == 2
    singles = [curve["short"] for curve in json.loads(page.scripts[0])["curves"] if curve["group"] == "single"]
    assert singles == names

    markdown = markdown_page((out / "report.md").read_text())
    assert [one["src"] for one in markdown.of("img")] == [f"{name}.png" for name in PICTURES]
    assert not {"a", "script", "b", "em"} & {tag for tag, _ in markdown.tags}
    arms = next(rows for rows in markdown.tables.values() if rows[0][0] == "arm" and "input tokens" in rows[0])
    assert [row[0] for row in arms[1:]] == [" ".join(name.split()) for name in names]

    tex = (out / "table.tex").read_text()
    assert r"\textless{}/script\textgreater{}\textless{}img src=x onerror=alert(1)\textgreater{}" in tex
    assert r"\$y\$ \textbackslash{} \{\& \% \#\} \textasciitilde{}\textasciicircum{}''" in tex
    assert tex.isascii()
    assert {len(row) for row in tex_tables(tex)["probes"]} == {7}
    for name in PICTURES:
        ElementTree.parse(out / f"{name}.svg")


def test_a_report_of_little(tmp_path: Path, changed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """One answer per problem, no probes, no limit; routing loses."""
    content = changed["evaluation"]
    content["data"]["k"] = dict.fromkeys(content["data"]["k"], 1)
    content["mix_by_difficulty"] = []
    rho = {"value": 0.4, "low": 0.0, "high": 1.0}
    content["human_difficulty"] = {"column": "metadata.level", "spearman": {"small": rho}}
    content["verdict"] = {"beats_controls": False, "method": None, "sentence": "Routing loses here."}
    for arm in content["arms"]:
        arm["probe"] = None
    for method in content["methods"]:
        method |= dict.fromkeys(("parity_saving", "peak_accuracy_gain", "aiq", "gap_closed", "limit_share"), None)
        method |= {"knob": None, "knob_spread": None}
    code, out, _ = run(capsys, write(tmp_path, changed))
    assert code == 0
    assert json.loads(out.splitlines()[-1])["files"] == [
        *(f"frontier.{form}" for form in ("pdf", "png", "svg")),
        *("report.html", "report.json", "report.md", "results.parquet", "table.tex"),
    ]
    page = Html((tmp_path / "report" / "report.html").read_text())
    assert list(page.tables) == ["methods", "mix", "arms", "human_difficulty"]
    assert page.first == "Routing loses here."
    assert page.tables["human_difficulty"][1:] == [["small", "0.400 [0.000, 1.000]"]]


def test_two_arms_have_apgr_and_cpt_and_variants_stand_in_tables_and_behind_buttons(
    tmp_path: Path, changed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    methods = changed["evaluation"]["methods"]
    methods[0] |= {"apgr": {"value": 0.74, "low": 0.7, "high": 0.8}, "cpt50": 0.21, "cpt80": 0.5}
    methods.insert(1, methods[0] | {"name": "utility:ratio", "label": "utility (ratio)", "apgr": None, "cpt50": None})
    assert run(capsys, write(tmp_path, changed))[0] == 0
    page = Html((tmp_path / "report" / "report.html").read_text())
    table = page.tables["frontiers"]
    assert table[0][-3:] == ["APGR", "CPT(50%), %", "CPT(80%), %"]
    assert next(row for row in table if row[0] == "utility (λ)")[-3:] == ["0.740 [0.700, 0.800]", "21.0", "50.0"]
    assert next(row for row in table if row[0] == "utility (ratio)")[-3:] == ["–", "–", "50.0"]
    assert [curve["name"] for curve in json.loads(page.scripts[0])["curves"] if curve["variant"]] == ["utility:ratio"]
    assert "utility (ratio)" not in (tmp_path / "report" / "frontier.svg").read_text()


NO_NUMBER = {"low": float("nan"), "high": 1.0, "problems": 1, "mix": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schema_version": 2},
            "has schema version 2, and this pika reads 1: run the `pika report` of the version that",
        ),
        ({"best_single": "huge"}, "arm 'huge' is named and not described; run `pika evaluate` again"),
        ({"methods": []}, "methods: Tuple should have at least 1 item"),
        ({"notes": 7}, "notes: Input should be a valid array"),
        ({"mix_by_difficulty": [{"method": "utility", "bins": [NO_NUMBER]}]}, "bins.0.low: Input should be a finite"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, built: dict[str, Any], capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path, built)
    (folder / "evaluation.json").write_text(json.dumps(built["evaluation"] | change))
    code, _, err = run(capsys, folder)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (folder / "report").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", None, "evaluation.json (No such file or directory): `pika evaluate --out"),
        ("evaluation.json", b'{"schema_version": 1,', "evaluation.json: the file: Invalid JSON"),
        ("results.parquet", None, "results.parquet (No such file or directory): `pika evaluate --out"),
        ("results.parquet", b"PAR1", "results.parquet as parquet"),
    ],
)
def test_files_that_are_missing_or_damaged(
    tmp_path: Path,
    built: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    file = write(tmp_path, built) / name
    file.unlink() if content is None else file.write_bytes(content)
    code, _, err = run(capsys, tmp_path)
    assert (code, message in err, len(err.splitlines())) == (2, True, 1), err


def test_files_of_two_evaluations(tmp_path: Path, built: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_parquet(write(tmp_path, built) / "results.parquet")
    frame.head(7).to_parquet(tmp_path / "results.parquet")
    assert "lacks 400 rows: it has 7; run `pika evaluate` again" in run(capsys, tmp_path)[2]
    frame.drop(columns="success:large").to_parquet(tmp_path / "results.parquet")
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    assert "is not of the same evaluation as evaluation.json, it lacks the arms large" in err


def test_a_folder_that_cannot_be_written(evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, evaluation, "--out", tmp_path / "file")
    assert code == 1
    assert f"cannot write {tmp_path / 'file'}: File exists; choose another --out" in err


def test_what_the_page_is_made_of_is_installed() -> None:
    names = {file.name for file in files("offline.report").iterdir()}
    assert {"template.html", "style.css", "frontier.js"} <= names


def test_what_pika_evaluate_writes_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from offline.evaluation.command import main as evaluate

    rollouts = pd.read_parquet(NANO / "rollouts.parquet").groupby(["split", "arm"]).head(60)
    rollouts.to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--draws", 20, "--methods", "utility,cascade:steps")
    assert evaluate([str(word) for word in (NANO / "pool.yaml", *words, "--out", tmp_path / "evaluation")]) == 0
    sentence = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["verdict"]["sentence"]
    code, out, _ = run(capsys, tmp_path / "evaluation")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["sentence"] == sentence
    page = Html((tmp_path / "evaluation" / "report" / "report.html").read_text())
    assert page.first.split() == sentence.split()
    assert set(page.tables) >= {"controls", "methods", "frontiers", "probes", "mix", "mix_by_difficulty", "arms"}
