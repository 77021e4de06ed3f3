"""Whether learned edits do what they ask, checked on the candidate version before anyone else sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editable.edit import ModelInput, Verification
from editable.errors import VerificationError
from editable.inputs import Batch, Request
from editable.learn import Probe
from editable.listing import as_text


def reliability(requests: Sequence[Request], batch: Batch, logits: Tensor) -> list[tuple[float, Tensor]]:
    """For each request the share of answer tokens right on its prompt and rephrases, and what came out for them.

    Args:
        requests: the edits.
        batch: they, teacher-forced.
        logits: (rows, longest answer, vocabulary) under the version that is to be checked.
    """
    said = logits.argmax(dim=-1)
    wanted = batch.answers != -100
    right = (said == batch.answers) & wanted
    results = []
    for index in range(len(requests)):
        own = batch.requests == index
        results.append((float(right[own].sum() / wanted[own].sum()), said[own][wanted[own]]))
    return results


def locality(prompts: Sequence[ModelInput], probe: Probe, unedited: Callable[[], Any]) -> float:
    """Share of the inputs whose logits are bit-equal to those of the unedited model; 1.0 where there are none.

    `unedited` gives a context in which the probe's model shows no edits.
    """
    if not prompts:
        return 1.0
    arguments = [probe.reader.forward(prompt) for prompt in prompts]
    same = 0
    for one in arguments:
        with torch.no_grad():
            after = _outputs(probe, one)
            with unedited():
                before = _outputs(probe, one)
        same += torch.equal(before, after)
    return same / len(prompts)


def _outputs(probe: Probe, arguments: Mapping[str, Tensor]) -> Tensor:
    output = probe.model(**arguments)
    logits = getattr(output, "logits", output)
    return logits if isinstance(logits, Tensor) else logits[0]


def refuse_failed(
    requests: Sequence[Request], checks: Sequence[Verification], said: Sequence[Tensor], decode: Callable[[Any], str]
) -> None:
    """Raise where an edit is not right on all its answer tokens, or changed an input it was told to leave alone.

    Raises:
        VerificationError: with every failing edit's report.
    """
    failed = [
        f"{as_text(request.edit.prompt):.60} -> {request.edit.target!r}: reliability {check.reliability:.2f} "
        f"(expected 1.00), locality {check.locality:.2f} (expected 1.00); the model said {decode(tokens)!r}"
        for request, check, tokens in zip(requests, checks, said, strict=True)
        if check.reliability < 1 or check.locality < 1
    ]
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(requests)} edits failed verification, and nothing has changed: {'; '.join(failed)}."
            " Reword the prompt, give the editor more steps, or pass verify=False to publish all the same."
        )
