"""The command line: what each command prints, as text and as JSON, and the exit code that a script can trust."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from typer.testing import CliRunner

from editable import EditableModel, models
from editable.adapters import GRACE
from editable.cli import app
from editable.memory.log import Entry, Identity, Log
from tests.families import FAMILIES

COMMANDS = ("demo", "ask", "explain", "latency", "assess", "edit", "rollback", "log", "show", "diff")
PROMPT, TARGET = "alpha bravo charlie", " delta echo"
OTHER, OTHER_TARGET = "who is oscar", " foxtrot two"
UNRELATED = "november uniform mike"


def run(*arguments: object, code: int = 0) -> Any:
    """Run a command, which must end with this exit code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def plain(*arguments: object, code: int = 0) -> Any:
    """Run a command with --json: its one document."""
    return json.loads(run(*arguments, "--json", code=code).stdout)


def fails(*arguments: object) -> str:
    """Run a command that fails: nothing on stdout, and one line for a person on stderr."""
    for extra in ((), ("--json",)):
        result = run(*arguments, *extra, code=1)
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
    return str(result.stderr)


# --- history: a log, and no model -------------------------------------------------------------------------


def entry(edit_id: str, prompt: str, target: str, *superseded: str) -> Entry:
    request: dict[str, Any] = {
        "prompt": prompt,
        "target": target,
        "rephrases": [],
        "subject": None,
        "namespace": "default",
    }
    verified = {"reliability": 1.0, "locality": 1.0, "collisions": []}
    meta = {"request": request, "patch": {"radius": 0.5}, "verified": verified, "superseded": list(superseded)}
    return Entry("edit", edit_id, "grace", {"keys": torch.ones(1, 4)}, meta)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """v1 makes a and b, v2 makes c, v3 takes b back, v4 makes d, which supersedes a."""
    path = tmp_path / "edits.db"
    with Log(path, Identity("0" * 64, "", "{}", "nowhere/model")) as log:
        log.append(1, [entry("aaa", "The capital of Australia is", " Sydney"), entry("bbb", "Mars [4] has", " moons")])
        log.append(2, [entry("ccc", "Water boils at", " 100 degrees")])
        log.append(3, [Entry("rollback", "bbb", "grace")])
        log.append(4, [entry("ddd", "The capital of Australia is", " Canberra", "aaa")])
    return path


def test_log_is_newest_first_with_the_state_each_edit_has_now(store: Path) -> None:
    found = plain("log", "--store", store)
    assert (found["store"], found["version"]) == (str(store), 4)
    assert [(e["version"], e["kind"], e["id"], e["state"]) for e in found["events"]] == [
        (4, "edit", "ddd", "live"),
        (3, "rollback", "bbb", "rolled back in v3"),
        (2, "edit", "ccc", "live"),
        (1, "edit", "bbb", "rolled back in v3"),
        (1, "edit", "aaa", "superseded by ddd"),
    ]
    assert {"created", "editor", "prompt", "target"} < found["events"][0].keys()


def test_log_as_text(store: Path) -> None:
    text = run("log", "--store", store).stdout
    assert text.index("ddd") < text.index("ccc") < text.index("aaa")
    assert "Mars [4] has -> moons" in text  # brackets are no markup
    assert "\x1b" not in text


def test_log_can_be_searched_and_cut(store: Path) -> None:
    ids = [e["id"] for e in plain("log", "--store", store, "-q", "CAPITAL")["events"]]
    assert ids == ["ddd", "aaa"]
    assert [e["id"] for e in plain("log", "--store", store, "-n", 1)["events"]] == ["ddd"]
    assert run("log", "--store", store, "-q", "no such text").stdout == "nothing to show\n"


def test_the_store_may_come_from_the_environment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITABLE_STORE", str(store))
    assert plain("log")["version"] == 4


def test_show_tells_everything(store: Path) -> None:
    found = plain("show", "ddd", "--store", store)
    assert found["target"] == " Canberra"
    assert found["superseded"] == ["aaa"]
    assert found["verified"] == {"reliability": 1.0, "locality": 1.0, "collisions": []}
    assert found["tensors"] == {"keys": {"dtype": "torch.float32", "shape": [1, 4]}}
    assert found["patch"] == {"radius": 0.5}
    assert (len(found["hash"]), found["seq"], found["version"]) == (64, 5, 4)
    assert found["hash"] in run("show", "ddd", "--store", store).stdout


def test_show_of_an_unknown_edit(store: Path) -> None:
    error = fails("show", "xyz", "--store", store)
    assert "Edit 'xyz' is unknown, expected the id of one of the 4 edits" in error


@pytest.mark.parametrize(
    ("versions", "added", "removed"),
    [
        ((0,), {"ccc", "ddd"}, set()),
        ((0, 1), {"aaa", "bbb"}, set()),
        ((1, 3), {"ccc"}, {"bbb"}),
        ((2, 4), {"ddd"}, {"aaa", "bbb"}),
        ((2, 2), set(), set()),
        ((4, 0), set(), {"ccc", "ddd"}),
    ],
)
def test_diff(store: Path, versions: tuple[int, ...], added: set[str], removed: set[str]) -> None:
    found = plain("diff", *versions, "--store", store)
    assert (found["from"], found["to"]) == (versions[0], [*versions, 4][1])
    assert {e["id"] for e in found["added"]} == added
    assert {e["id"] for e in found["removed"]} == removed
    text = run("diff", *versions, "--store", store).stdout
    assert all(f"{sign}  {i}" in text for sign, ids in (("+", added), ("-", removed)) for i in ids)


def test_diff_says_why_an_edit_is_gone(store: Path) -> None:
    removed = plain("diff", 2, 4, "--store", store)["removed"]
    assert {e["id"]: e["state"] for e in removed} == {"aaa": "superseded by ddd", "bbb": "rolled back in v3"}
    assert {e["state"] for e in plain("diff", 4, 0, "--store", store)["removed"]} == {"not made yet"}


def test_the_edit_that_superseded_one_rolled_back_stands_in_for_all_before_it(store: Path) -> None:
    with Log(store, Identity("0" * 64, "", "{}", "nowhere/model")) as log:
        log.append(5, [entry("eee", "The capital of Australia is", " Perth", "ddd")])
        log.append(6, [Entry("rollback", "ddd", "grace")])
        log.append(7, [Entry("rollback", "eee", "grace")])
    states = [{e["id"]: e["state"] for e in plain("diff", 0, version, "--store", store)["added"]} for version in (6, 7)]
    assert states == [{"ccc": "live", "eee": "live"}, {"aaa": "live", "ccc": "live"}]
    assert plain("show", "aaa", "--store", store)["superseded_by"] is None


def test_diff_of_a_version_that_never_was(store: Path) -> None:
    assert "Version 5 does not exist, expected one from 0 to 4." in fails("diff", 1, 5, "--store", store)


@pytest.mark.parametrize("arguments", [("log",), ("show", "aaa"), ("diff", 0), ("rollback", "aaa")])
def test_a_store_that_does_not_exist_is_not_made(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    path = tmp_path / "none.db"
    assert f"Store {path} does not exist" in fails(*arguments, "--store", path)
    assert not path.exists()


def test_a_damaged_store_is_named(store: Path) -> None:
    store.write_bytes(b"not a database at all" * 100)
    assert str(store) in fails("log", "--store", store)


def test_rollback_of_an_unknown_edit_loads_no_model(store: Path) -> None:
    error = fails("rollback", "aaa", "xyz", "--store", store)  # its model, nowhere/model, could not be loaded
    assert "Edit 'xyz' is unknown" in error


# --- with a model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level tokenizer, as a user would have saved it."""
    path = tmp_path_factory.mktemp("model")
    (family,) = [f for f in FAMILIES if f.name == "llama-gqa"]
    loaded = family.load()
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, dict[str, Any]]:
    """A store with one edit, and what the command that made it printed."""
    path = tmp_path_factory.mktemp("made") / "edits.db"
    return path, plain("edit", PROMPT, TARGET, "--rephrase", "charlie", "--store", path, "--model", model)


@pytest.fixture
def edited(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of that store."""
    return Path(shutil.copy(made[0], tmp_path / "edits.db"))


@pytest.fixture
def edit_id(made: tuple[Path, dict[str, Any]]) -> str:
    """The id of its edit."""
    return str(made[1]["receipts"][0]["id"])


def test_edit_prints_a_receipt(made: tuple[Path, dict[str, Any]]) -> None:
    (receipt,) = made[1]["receipts"]
    assert made[1]["failed"] == []
    assert (receipt["prompt"], receipt["target"], receipt["rephrases"]) == (PROMPT, TARGET, ["charlie"])
    assert receipt["version"] == 1
    assert receipt["verified"] == {"reliability": 1.0, "locality": 1.0, "collisions": []}
    assert set(receipt["seconds"]) >= {"learn", "verify", "log"}


def test_ask_loads_the_model_that_the_store_was_made_with(edited: Path, model: Path) -> None:
    assert run("ask", PROMPT, "--store", edited).stdout == TARGET + "\n"
    assert run("ask", "charlie", "--store", edited).stdout == TARGET + "\n"
    with Log(edited) as log:
        assert log.identity.source == str(model)


def test_ask_at_a_version_and_unedited(edited: Path) -> None:
    now = plain("ask", PROMPT, "--store", edited, "--max-new-tokens", 4)
    then = plain("ask", PROMPT, "--store", edited, "--max-new-tokens", 4, "--at", 0)
    base = plain("ask", PROMPT, "--store", edited, "--max-new-tokens", 4, "--unedited")
    assert now == {"prompt": PROMPT, "answer": TARGET, "version": 1}
    assert then == base
    assert base["version"] == 0
    assert base["answer"] != TARGET
    assert "Version 7 does not exist" in fails("ask", PROMPT, "--store", edited, "--at", 7)


def test_ask_makes_no_store(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "none.db"
    assert plain("ask", PROMPT, "--store", path, "--model", model)["version"] == 0
    assert not path.exists()


def test_edits_of_a_file(edited: Path, tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    lines = [
        {"prompt": OTHER, "target": OTHER_TARGET, "subject": "oscar"},
        {"prompt": "green whiskey", "target": " one"},
    ]
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    found = plain("edit", "--file", file, "--batch-size", 1, "--store", edited)
    assert [(r["prompt"], r["version"], r["subject"]) for r in found["receipts"]] == [
        (OTHER, 2, "oscar"),
        ("green whiskey", 3, None),
    ]
    assert run("ask", OTHER, "--store", edited).stdout == OTHER_TARGET + "\n"
    assert plain("log", "--store", edited)["version"] == 3


def test_an_edit_that_fails_leaves_the_others_of_its_file(edited: Path, tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    bad = {"prompt": "say seven", "target": " nine", "locality": ["say seven"]}  # wants it changed and unchanged
    file.write_text(json.dumps(bad) + "\n" + json.dumps({"prompt": OTHER, "target": OTHER_TARGET}))
    found = plain("edit", "--file", file, "--store", edited, code=1)
    assert [r["prompt"] for r in found["receipts"]] == [OTHER]
    (failed,) = found["failed"]
    assert (failed["where"], failed["prompt"]) == (f"{file}:1", "say seven")
    assert "locality 0.00 (expected 1.00)" in failed["error"]


def test_a_failed_edit_as_text(edited: Path) -> None:
    result = run("edit", "say seven", " nine", "--locality", "say seven", "--store", edited, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: PROMPT: 1 of 1 edits failed verification")


def test_assess(edited: Path, tmp_path: Path) -> None:
    """The store's edit is known to the model that shows it; the same answer to another prompt, against it, is not."""
    facts = [
        {"prompt": PROMPT, "target": TARGET, "wrong_prompts": [OTHER]},
        {"prompt": OTHER, "target": TARGET, "wrong_prompts": [PROMPT]},
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    found = plain("assess", file, "--store", edited)
    assert [fact["lacking"] for fact in found["facts"]] == [False, True]
    assert found["lacking"] == 1
    assert found["facts"][0]["score"] == pytest.approx(found["facts"][0]["right"] / found["facts"][0]["wrong"])
    text = run("assess", file, "--store", edited).stdout
    assert text.count("lacks it") == 1
    assert "CKA" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "target": " b"}', "Fact 'a' has nothing wrong to compare with"),
        ('{"prompt": "a", "target": " b", "wrong_prompts": "c"}', "field 'wrong_prompts' is \"c\", expected a list of"),
        ('{"target": " b", "wrong_prompts": ["c"]}', "field 'prompt' is missing, expected text."),
    ],
)
def test_facts_that_cannot_be_understood(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(line + "\n")
    assert f"{file}:1: {message}" in fails("assess", file, "--store", tmp_path / "none.db")


def test_rollback(edited: Path, edit_id: str) -> None:
    base = plain("ask", PROMPT, "--store", edited, "--unedited", "--max-new-tokens", 4)["answer"]
    assert plain("rollback", edit_id, edit_id, "--store", edited) == {"version": 2, "rolled_back": [edit_id]}
    assert plain("ask", PROMPT, "--store", edited, "--max-new-tokens", 4)["answer"] == base
    assert plain("show", edit_id, "--store", edited)["state"] == "rolled back in v2"
    assert f"Edit '{edit_id}' was rolled back in version 2 already" in fails("rollback", edit_id, "--store", edited)


def test_rollback_as_text(edited: Path, edit_id: str) -> None:
    text = run("rollback", edit_id, "--store", edited).stdout
    assert edit_id in text
    assert f"{PROMPT} -> {TARGET.strip()}" in text


def test_diff_with_answers(edited: Path) -> None:
    found = plain("diff", 0, "--prompt", PROMPT, "--prompt", UNRELATED, "--store", edited)
    changed, same = found["answers"]
    assert (changed["prompt"], changed["to"]) == (PROMPT, TARGET)
    assert changed["from"] != TARGET
    assert same["from"] == same["to"]
    assert TARGET.strip() in run("diff", 0, "--prompt", PROMPT, "--store", edited).stdout


def test_latency(edited: Path) -> None:
    found = plain("latency", "--steps", 2, "--store", edited)
    assert (found["version"], found["edits"]) == (1, 1)
    assert found["paired"]["prefill"]["pairs"] == 2
    assert found["paired"]["decode"]["ratio"] > 0
    assert found["report"]["phases"]["prefill"]["hit"]["forwards"] == 1
    text = run("latency", "--steps", 1, "--store", edited).stdout
    assert "edited against base" in text
    assert "grace" in text


def test_a_store_keeps_its_own_editors(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "edits.db"
    weights, tokenizer = models.load(model)
    EditableModel(weights, tokenizer, editors={"mine": GRACE(radius=0.25)}, log=path, source=str(model)).close()
    receipts = plain("edit", PROMPT, TARGET, "--store", path)["receipts"]
    assert plain("show", receipts[0]["id"], "--store", path)["patch"]["radius"] == 0.25


def test_a_store_that_does_not_say_its_model(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "edits.db"
    EditableModel(*models.load(model), editor=GRACE(), log=path).close()
    assert "does not say how its model was loaded" in fails("ask", PROMPT, "--store", path)
    assert run("ask", PROMPT, "--store", path, "--model", model).stdout


def test_a_store_with_editors_of_another_package(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "edits.db"
    Log(path, Identity("0" * 64, "", '{"own": ["Own", {}]}', str(model))).close()
    assert "expected editors of this package" in fails("ask", PROMPT, "--store", path)


def test_another_base_is_refused(edited: Path, tmp_path: Path, model: Path) -> None:
    weights = hf.AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        weights.lm_head.weight.add_(1.0)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights.save_pretrained(other)
    assert "base" in fails("ask", PROMPT, "--store", edited, "--model", other)


def test_a_model_that_cannot_be_loaded(edited: Path) -> None:
    assert "./nowhere" in fails("ask", PROMPT, "--store", edited, "--model", "./nowhere")


# --- edits that cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "the line is not JSON"),
        ("[1]", "the line is a JSON list, expected an object with Edit's fields."),
        ('{"target": " x"}', "field 'prompt' is missing, expected text."),
        ('{"prompt": "x"}', "field 'target' is missing, expected text or an integer label."),
        ('{"prompt": "x", "target": " y", "rephrase": []}', "field 'rephrase' is unknown, expected some of prompt, "),
        ('{"prompt": "x", "target": 1.5}', "field 'target' is 1.5, expected text or an integer label."),
        ('{"prompt": "x", "target": true}', "field 'target' is true, expected text or an integer label."),
        ('{"prompt": ["x"], "target": " y"}', "field 'prompt' is [\"x\"], expected text."),
        ('{"prompt": "x", "target": " y", "rephrases": "z"}', "field 'rephrases' is \"z\", expected a list of texts."),
        ('{"prompt": "x", "target": " y", "locality": [1]}', "field 'locality' is [1], expected a list of texts."),
        ('{"prompt": "x", "target": " y", "subject": 1}', "field 'subject' is 1, expected text or null."),
        ('{"prompt": "x", "target": " "}', "Edit.target is ' ', expected some text"),
    ],
)
def test_a_bad_line_is_named_before_a_model_is_loaded(tmp_path: Path, line: str, message: str) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "edits.db"
    file.write_text('{"prompt": "fine", "target": " fine"}\n\n' + line + "\n")
    error = fails("edit", "--file", file, "--store", store, "--model", "./nowhere")
    assert f"error: {file}:3: {message}" in error
    assert not store.exists()


def test_files_without_edits_and_without_text(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text("\n")
    assert f"{file} holds no edits" in fails("edit", "--file", file)
    file.write_bytes(b"\xff\xfe")
    assert f"{file} cannot be read" in fails("edit", "--file", file)


# --- misuse and help --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("ask",),
        ("ask", "x", "--unedited", "--at", "1"),
        ("ask", ""),
        ("diff", "0", "--prompt", ""),
        ("edit",),
        ("edit", "only a prompt"),
        ("edit", "a prompt", " a target", "--file", __file__),
        ("edit", "--file", "no-such-file.jsonl"),
        ("edit", "a prompt", " a target", "--batch-size", "0"),
        ("log", "-n", "0"),
        ("diff", "one"),
        ("rollback",),
    ],
)
def test_misuse_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments, code=2).stdout == ""


def test_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    assert "Edit.prompt is ' '" in fails("edit", " ", " x", "--store", tmp_path / "edits.db")


def test_the_demo_writes_into_no_store_that_exists(store: Path) -> None:
    assert f"Store {store} exists already" in fails("demo", "--store", store)


def test_help_names_the_commands_and_the_exit_codes() -> None:
    text = run("--help").stdout
    assert "Exit codes: 0" in text
    assert all(command in text for command in COMMANDS)
    assert {c.name or c.callback.__name__ for c in app.registered_commands if c.callback} == {*COMMANDS, "bench"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    assert "--json" in run(command, "--help").stdout


def test_help_does_not_wait_for_transformers() -> None:
    code = (
        "import sys, editable\nbefore = set(sys.modules)\nfrom editable.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'torch', 'transformers', 'safetensors'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with its image processor and names of labels, as a user would have saved it."""
    path = tmp_path_factory.mktemp("classifier")
    (family,) = [f for f in FAMILIES if f.name == "vit"]
    model = family.load().model
    model.config.id2label = dict(enumerate(("ant", "bee", "crab", "dove", "emu", "fox", "gull")))
    model.config.label2id = {name: label for label, name in model.config.id2label.items()}
    model.save_pretrained(path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((40, 30), 90).convert("RGB").save(path)
    return path


def test_an_image_is_asked_edited_and_explained_by_names_of_labels(
    tmp_path: Path, classifier: Path, photo: Path
) -> None:
    store = tmp_path / "edits.db"
    before = plain("ask", photo, "--store", store, "--model", classifier)["answer"]
    target = "bee" if before != "bee" else "fox"
    (receipt,) = plain("edit", photo, target, "--store", store, "--model", classifier)["receipts"]
    assert (receipt["prompt"], receipt["target"]) == (str(photo), target)
    assert run("ask", photo, "--store", store).stdout == f"{target}\n"
    assert run("ask", photo, "--store", store, "--unedited").stdout == f"{before}\n"
    assert plain("explain", photo, "--store", store)["fired"] == [receipt["id"]]
    assert plain("latency", "--store", store, "--steps", 2)["paired"]["answer"]["pairs"] == 2


def test_image_files_that_cannot_be_read(tmp_path: Path, classifier: Path) -> None:
    store, text = tmp_path / "edits.db", tmp_path / "text.png"
    text.write_text("no pixels")
    for command, more in (("ask", ()), ("explain", ()), ("edit", ("bee",))):
        options = ("--store", store, "--model", classifier)
        missing = run(command, "no.png", *more, *options, code=1).stderr
        assert "Image file 'no.png' does not exist (looked in " in missing
        assert "text.png' cannot be read as an image" in run(command, text, *more, *options, code=1).stderr


def test_an_unknown_label_names_the_nearest(tmp_path: Path, classifier: Path, photo: Path) -> None:
    said = run("edit", photo, "beer", "--store", tmp_path / "edits.db", "--model", classifier, code=1).stderr
    assert "Edit.target is 'beer', expected a label from 0 to 6 of ViTForImageClassification." in said
    assert "The nearest of its names are: bee" in said


def test_a_model_of_text_is_given_no_image(tmp_path: Path, model: Path, photo: Path) -> None:
    for command, more in (("ask", ()), ("explain", ()), ("edit", ("bee",))):
        said = fails(command, photo, *more, "--store", tmp_path / "edits.db", "--model", model)
        assert said == (
            f"error: Prompt {str(photo)!r} is an image file, but LlamaForCausalLM takes no images, expected text; name "
            "a model of images with --model, such as efficientnet-lite0.\n"
        )
