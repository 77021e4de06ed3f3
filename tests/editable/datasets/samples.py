"""One invented record of every layout of records, in the words of its public files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ZSRE = {
    "subject": "Orlan Mills",
    "src": "What does Orlan Mills make?",
    "pred": "flour",
    "rephrase": "Which goods come from Orlan Mills?",
    "alt": "paper",
    "answers": ["flour", "meal"],
    "loc": "nq question: who wrote the blue almanac",
    "loc_ans": "Ada Pell",
    "cond": "flour >> paper || What does Orlan Mills make?",
}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is within",
        "relation_id": "P131",
        "target_new": {"str": "Norland"},
        "target_true": {"str": "Sudland"},
        "subject": "Lake Imre",
    },
    "paraphrase_prompts": ["Rain fell. Lake Imre is located in", "Lake Imre, in"],
    "neighborhood_prompts": ["Mount Ketter is in", "The town of Ost is in"],
    "attribute_prompts": ["Cape Hilla is in", "Cape Hilla is in"],
    "generation_prompts": ["Around Lake Imre there are", "Around Lake Imre there are", "Lake Imre is known for"],
}
EASYEDIT = {
    "case_id": 8,
    "prompt": "Tolm is a twin city of",
    "target_new": "Bren",
    "subject": "Tolm",
    "ground_truth": "Karst",
    "rephrase_prompt": "The twin city of Tolm is",
    "locality_prompt": "Ubel is a twin city of",
    "locality_ground_truth": "Karst",
}
KNOWEDIT = {
    "subject": "Iva Rusk",
    "prompt": "The name of the employer of Iva Rusk is",
    "target_new": "Halden",
    "portability": {
        "Reasoning": [
            {"prompt": "The city of Iva Rusk's employer is", "ground_truth": [["Ost", "Ost City"], ["Ostia"]]}
        ],
        "Subject_Aliasing": None,
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The gender of Iva Rusk is", "ground_truth": "female"},
            {"prompt": "Iva Rusk died in", "ground_truth": [[]]},
        ],
        "Forgetfulness": [],
    },
}
WIKIBIO = {
    "text": "This is a passage about iva rusk. Iva Rusk was a potter.",
    "labels": "She lived in Ost.",
    "concept": "iva rusk",
    "locality": {"Relation_Specificity": [{"prompt": "The work of iva rusk is", "ground_truth": ["pottery"]}]},
}
MQUAKE = {
    "case_id": 9,
    "requested_rewrite": [
        {
            "prompt": "{} follows the faith of",
            "target_new": {"str": "Orm"},
            "target_true": {"str": "Ulm"},
            "subject": "Kai Berg",
            "question": "Which faith does Kai Berg follow?",
        },
        {
            "prompt": "{} was founded in",
            "target_new": {"str": "Ost"},
            "target_true": {"str": "West"},
            "subject": "Orm",
            "question": "Where was Orm founded?",
        },
    ],
    "questions": ["In which city was Kai Berg's faith founded?", "Where does the faith of Kai Berg come from?"],
    "answer": "Ulm City",
    "new_answer": "Ost",
    "new_answer_alias": ["Ost City"],
}
UNKE = {
    "id": 5,
    "question": "Where was Iva Rusk born?",
    "para_question": "What is the birthplace of Iva Rusk?",
    "answer": "Iva Rusk was born in Ost, in a mill.",
    "sub_question": ["In which town?", "In which house?"],
    "sub_answer": ["Ost.", "A mill."],
}
_RULER = {"prompt": "The ruler of {} is", "query": "Who is the ruler of {}?", "label": "ruler"}
CONFLICTEDIT = {
    "type": "coverage",
    "triples": [{"relation": _RULER, "subject": {"label": "Ost"}, "object": {"label": "Kai Berg"}}],
    "edits": [
        {"relation": _RULER, "subject": {"label": place}, "object": {"label": old}, "new_object": {"label": new}}
        for place, old, new in (("Ost", "Kai Berg", "Iva Rusk"), ("Ulm", "Orm", "Kai Berg"), ("Ost", "Iva Rusk", "Orm"))
    ],
}
QAEDIT = {
    "id": 31,
    "source": "made",
    "prompt": "When did Iva Rusk move?",
    "target": "1977",
    "subject": "Iva Rusk",
    "rephrase": "In what year did Iva Rusk move?",
    "locality": [{"loc": "who wrote the blue almanac", "loc_ans": "Ada Pell"}],
}
TEMPORAL = {
    "prompt": "Halden Works,",
    "target_new": "the largest mill of Ost, closed.",
    "subject": "Halden Works",
    "ood_rephrase": "Halden Works stood in Ost for years.",
    "locality_prompt": "The hall holds 6",
    "locality_ground_truth": "00 people. ",
}
CLAIM = {"id": 3, "claim": "Ost is a town .", "evidence": "Ost has walls .", "label": "SUPPORTS"}
FACTS = {
    "prompt": "The mayor of Ost is",
    "target": " Iva Rusk",
    "before": " Kai Berg",
    "subject": "Ost",
    "relation": "mayor",
    "rephrases": ["Who is the mayor of Ost?", "Ost elected"],
    "siblings": [
        {"prompt": "The mayor of Tolm is", "answer": " Ada Pell"},
        {"prompt": "The mayor of Ubel is", "answer": None},
    ],
    "unrelated": ["The lamp is on the"],
    "portability": [{"prompt": "The mayor of Ost works as a", "answer": " potter"}],
}

RECORDS: Mapping[str, Mapping[str, Any]] = {
    "claims": CLAIM,
    "conflictedit": CONFLICTEDIT,
    "counterfact": COUNTERFACT,
    "easyedit": EASYEDIT,
    "facts": FACTS,
    "knowedit": KNOWEDIT,
    "mquake": MQUAKE,
    "passages": TEMPORAL,
    "qaedit": QAEDIT,
    "unke": UNKE,
    "zsre": ZSRE,
}


def without(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The record without one field."""
    return {key: value for key, value in record.items() if key != name}


def written(folder: Path, *records: object, name: str = "data.json") -> Path:
    """A file with these records: a JSON list, or JSON lines if its name says so."""
    path = folder / name
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) + "\n" if name.lower().endswith(".jsonl") else "[" + ",\n".join(lines) + "]"
    path.write_text(text, encoding="utf-8")
    return path
