"""Every layout of records: what its sample becomes, and that no other layout takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from editable.datasets import Case, DataError, Question, layouts, load
from editable.datasets.record import Record
from tests.editable.datasets.samples import (
    CLAIM,
    CONFLICTEDIT,
    COUNTERFACT,
    EASYEDIT,
    FACTS,
    KNOWEDIT,
    MQUAKE,
    QAEDIT,
    RECORDS,
    TEMPORAL,
    UNKE,
    WIKIBIO,
    ZSRE,
    without,
    written,
)

Asked = tuple[Any, tuple[str | int, ...], str]


def plain(questions: Iterable[Question]) -> list[Asked]:
    return [(question.prompt, question.answers, question.kind) for question in questions]


def only(folder: Path, record: Mapping[str, Any]) -> Case:
    (case,) = load(written(folder, record))
    return case


def test_every_layout_of_records_has_a_sample() -> None:
    found = [name for name in layouts.names() if hasattr(layouts.named(name), "recognises")]
    assert found == sorted(RECORDS)


@pytest.mark.parametrize("name", [*RECORDS, "wikibio"])
def test_a_record_is_recognised_by_its_own_layout_alone(name: str) -> None:
    record = Record(RECORDS.get(name, WIKIBIO), "here")
    takers = [known for known in RECORDS if layouts.named(known).recognises(record)]
    assert takers == ["knowedit" if name == "wikibio" else name]


def test_zsre(tmp_path: Path) -> None:
    case = only(tmp_path, ZSRE)
    assert (case.edit.prompt, case.edit.target) == ("What does Orlan Mills make?", " paper")
    assert (case.edit.subject, case.before) == ("Orlan Mills", " flour")
    assert case.edit.rephrases == ()
    assert plain(case.rephrases) == [("Which goods come from Orlan Mills?", (" paper",), "")]
    assert plain(case.locality) == [("who wrote the blue almanac?", (" Ada Pell",), "")]
    assert case.where == f"{tmp_path / 'data.json'}, record 1"


def test_zsre_with_a_one_hop_question_and_without_extras(tmp_path: Path) -> None:
    hop = {"Recalled Relation": "(paper, from, wood)", "New Question": "What do they need?", "New Answer": "wood"}
    case = only(tmp_path, {"src": "What?", "alt": "paper", "portability": hop})
    assert plain(case.portability) == [("What do they need?", (" wood",), "one-hop")]
    assert (case.rephrases, case.locality, case.before, case.edit.subject) == ((), (), None, None)


def test_a_zsre_record_with_an_empty_alternative_is_no_edit(tmp_path: Path) -> None:
    cases = load(written(tmp_path, {**ZSRE, "alt": ""}, ZSRE))
    assert [case.where for case in cases] == [f"{tmp_path / 'data.json'}, record 2"]
    with pytest.raises(DataError, match=r"field 'alt' is missing, expected some text"):
        load(written(tmp_path, without(ZSRE, "alt")))


def test_counterfact(tmp_path: Path) -> None:
    case = only(tmp_path, COUNTERFACT)
    assert (case.edit.prompt, case.edit.target) == ("Lake Imre is within", " Norland")
    assert (case.edit.subject, case.before) == ("Lake Imre", " Sudland")
    assert plain(case.rephrases) == [
        ("Rain fell. Lake Imre is located in", (" Norland",), ""),
        ("Lake Imre, in", (" Norland",), ""),
    ]
    assert plain(case.locality) == [
        ("Mount Ketter is in", (" Sudland",), "neighborhood"),
        ("The town of Ost is in", (" Sudland",), "neighborhood"),
    ]
    assert case.generate == ("Around Lake Imre there are", "Lake Imre is known for")
    assert case.reference == ("Cape Hilla is in Norland",)
    assert case.where.endswith("record 1 (case_id 7)")


def test_easyedit(tmp_path: Path) -> None:
    case = only(tmp_path, EASYEDIT)
    assert (case.edit.prompt, case.edit.target) == ("Tolm is a twin city of", " Bren")
    assert (case.edit.subject, case.before) == ("Tolm", " Karst")
    assert plain(case.rephrases) == [("The twin city of Tolm is", (" Bren",), "")]
    assert plain(case.locality) == [("Ubel is a twin city of", (" Karst",), "")]


def test_knowedit_counts_every_alias_and_keeps_the_groups(tmp_path: Path) -> None:
    case = only(tmp_path, KNOWEDIT)
    assert (case.edit.prompt, case.edit.target) == ("The name of the employer of Iva Rusk is", " Halden")
    assert (case.edit.subject, case.before) == ("Iva Rusk", None)
    assert plain(case.portability) == [
        ("The city of Iva Rusk's employer is", (" Ost", " Ost City", " Ostia"), "Reasoning")
    ]
    assert plain(case.locality) == [
        ("The gender of Iva Rusk is", (" female",), "Relation_Specificity"),
        ("Iva Rusk died in", (), "Relation_Specificity"),
    ]
    assert only(tmp_path, {**KNOWEDIT, "ground_truth": "Tolm & Co"}).before == " Tolm & Co"


def test_wikibio(tmp_path: Path) -> None:
    case = only(tmp_path, WIKIBIO)
    assert case.edit.prompt == "This is a passage about iva rusk. Iva Rusk was a potter."
    assert (case.edit.target, case.edit.subject) == (" She lived in Ost.", "iva rusk")
    assert plain(case.locality) == [("The work of iva rusk is", (" pottery",), "Relation_Specificity")]


def test_mquake_is_one_case_an_edit_and_asks_over_hops_after_the_last(tmp_path: Path) -> None:
    first, last = load(written(tmp_path, MQUAKE))
    assert (first.edit.prompt, first.edit.target, first.before) == ("Kai Berg follows the faith of", " Orm", " Ulm")
    assert (last.edit.prompt, last.edit.target, last.edit.subject) == ("Orm was founded in", " Ost", "Orm")
    assert plain(first.rephrases) == [("Which faith does Kai Berg follow?", (" Orm",), "")]
    assert first.portability == ()
    assert plain(last.portability) == [
        ("In which city was Kai Berg's faith founded?", (" Ost", " Ost City"), "multi-hop"),
        ("Where does the faith of Kai Berg come from?", (" Ost", " Ost City"), "multi-hop"),
    ]


def test_conflictedit_keeps_the_last_answer_to_a_question_and_the_one_before(tmp_path: Path) -> None:
    other, last = load(written(tmp_path, CONFLICTEDIT))
    assert (other.edit.prompt, other.edit.target, other.before) == ("The ruler of Ulm is", " Kai Berg", " Orm")
    assert (last.edit.prompt, last.edit.target, last.before) == ("The ruler of Ost is", " Orm", " Iva Rusk")
    assert last.edit.subject == "Ost"
    assert plain(last.rephrases) == [("Who is the ruler of Ost?", (" Orm",), "")]
    with pytest.raises(DataError, match=r"field 'edits' is \[\] \(list\), expected at least one edit"):
        load(written(tmp_path, {**CONFLICTEDIT, "edits": []}))


def test_unke(tmp_path: Path) -> None:
    case = only(tmp_path, UNKE)
    assert (case.edit.prompt, case.edit.target) == (
        "Where was Iva Rusk born?",
        " Iva Rusk was born in Ost, in a mill.",
    )
    assert [question.prompt for question in case.rephrases] == ["What is the birthplace of Iva Rusk?"]
    assert plain(case.portability) == [
        ("In which town?", (" Ost.",), "part"),
        ("In which house?", (" A mill.",), "part"),
    ]
    with pytest.raises(DataError, match=r"field 'sub_answer' is \['Ost\.'\] \(list\), expected 2 texts, one for each"):
        only(tmp_path, {**UNKE, "sub_answer": ["Ost."]})


def test_plain_questions_and_answers(tmp_path: Path) -> None:
    case = only(tmp_path, {"question": "who runs ost", "answer": ["Iva Rusk", "Rusk"]})
    assert (case.edit.prompt, case.edit.target) == ("who runs ost?", " Iva Rusk")
    assert only(tmp_path, {"question": "Name the mayor.", "answer": "Iva"}).edit.prompt == "Name the mayor."
    with pytest.raises(DataError, match=r"field 'answer' is \[\] \(list\), expected some text, or a list of texts"):
        only(tmp_path, {"question": "who?", "answer": []})


def test_qaedit(tmp_path: Path) -> None:
    case = only(tmp_path, QAEDIT)
    assert (case.edit.prompt, case.edit.target) == ("When did Iva Rusk move?", " 1977")
    assert plain(case.rephrases) == [("In what year did Iva Rusk move?", (" 1977",), "")]
    assert plain(case.locality) == [("who wrote the blue almanac?", (" Ada Pell",), "")]


def test_passages_keep_a_cut_within_a_word(tmp_path: Path) -> None:
    case = only(tmp_path, TEMPORAL)
    assert (case.edit.prompt, case.edit.target) == ("Halden Works,", " the largest mill of Ost, closed.")
    assert [question.prompt for question in case.rephrases] == ["Halden Works stood in Ost for years."]
    assert plain(case.locality) == [("The hall holds 6", ("00 people.",), "")]
    apart = only(tmp_path, {**TEMPORAL, "locality_prompt": "The hall holds ", "locality_ground_truth": "six"})
    assert plain(apart.locality) == [("The hall holds", (" six",), "")]
    silent = only(tmp_path, {**without(TEMPORAL, "ood_rephrase"), "locality_ground_truth": " "})
    assert plain(silent.locality) == [("The hall holds 6", (), "")]
    assert silent.rephrases == ()


@pytest.mark.parametrize(("label", "number"), [("REFUTES", 0), ("SUPPORTS", 1), ("NOT ENOUGH INFO", 2)])
def test_claims(tmp_path: Path, label: str, number: int) -> None:
    case = only(tmp_path, {**CLAIM, "label": label})
    assert (case.edit.prompt, case.edit.target) == ("Ost is a town . Ost has walls .", number)


def test_a_claim_whose_evidence_is_a_list_of_places_is_asked_alone(tmp_path: Path) -> None:
    case = only(tmp_path, {**without(CLAIM, "label"), "gold_label": "REFUTES", "evidence": [[[1, 2, "Ost", 0]]]})
    assert (case.edit.prompt, case.edit.target) == ("Ost is a town .", 0)
    with pytest.raises(
        DataError, match=r"field 'label' is 'maybe' \(str\), expected one of REFUTES, SUPPORTS, NOT ENOUGH INFO"
    ):
        only(tmp_path, {**CLAIM, "label": "maybe"})


def test_facts(tmp_path: Path) -> None:
    case = only(tmp_path, FACTS)
    assert (case.edit.prompt, case.edit.target, case.edit.subject) == ("The mayor of Ost is", " Iva Rusk", "Ost")
    assert case.before == " Kai Berg"
    assert plain(case.rephrases) == [
        ("Who is the mayor of Ost?", (" Iva Rusk",), ""),
        ("Ost elected", (" Iva Rusk",), ""),
    ]
    assert plain(case.locality) == [
        ("The mayor of Tolm is", (" Ada Pell",), "sibling"),
        ("The mayor of Ubel is", (), "sibling"),
        ("The lamp is on the", (), "unrelated"),
    ]
    assert plain(case.portability) == [("The mayor of Ost works as a", (" potter",), "")]
    bare = only(tmp_path, {"prompt": " Who? ", "target": "  me "})
    assert (bare.edit.prompt, bare.edit.target, bare.locality, bare.before) == ("Who?", " me", (), None)
