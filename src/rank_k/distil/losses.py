"""What is made small when verdicts are learnt: weighted cross-entropy, and a softmax over the window's passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rank_k.distil.examples import IGNORED
from rank_k.distil.recipes import Verdicts
from rank_k.extras import load


def verdict_loss(hidden: Any, head: Any, labels: Any, verdicts: Any, tokens: Sequence[int], settings: Verdicts) -> Any:
    """The loss of a batch, a scalar.

    `hidden`: batch x length x size, the last layer's states; `head`: vocabulary x size; `labels`: batch x length;
    `verdicts`: n x 3, of (row, place of the verdict, the right one), the rows in order; `tokens`: of the verdicts,
    worst first.

    The mean over verdicts (the best kind weighing `best_weight`), plus `other_weight` times the mean over all other
    tokens, plus `listwise` times the mean over windows of the softmax below.
    """
    torch = load("torch")
    cross_entropy = torch.nn.functional.cross_entropy
    learnt = labels[:, 1:] != IGNORED
    is_verdict = torch.zeros_like(learnt)
    is_verdict[verdicts[:, 0], verdicts[:, 1] - 1] = True
    # The head's product is the dearest single one of a small model: only where something is learnt.
    others = (hidden[:, :-1][learnt & ~is_verdict] @ head.T).float()
    loss = hidden.sum() * 0  # where there is nothing to learn there is still something to go back through
    if len(others):
        loss = settings.other_weight * cross_entropy(others, labels[:, 1:][learnt & ~is_verdict])
    if not len(verdicts):
        return loss
    logits = (hidden[verdicts[:, 0], verdicts[:, 1] - 1] @ head.T).float()
    right = torch.tensor(tokens, device=labels.device)[verdicts[:, 2]]
    weights = torch.where(verdicts[:, 2] == len(tokens) - 1, settings.best_weight, 1.0)
    loss = loss + (cross_entropy(logits, right, reduction="none") * weights).sum() / weights.sum()
    if settings.listwise:
        loss = loss + settings.listwise * listwise_loss(logits[:, list(tokens)], verdicts[:, 0], verdicts[:, 2])
    return loss


def scores(logits: Any) -> Any:
    """How much better than all others the best verdict is, for each of n passages (`logits`: n x words)."""
    return logits[:, -1] - load("torch").logsumexp(logits[:, :-1], dim=1)


def listwise_loss(logits: Any, rows: Any, right: Any) -> Any:
    """Cross-entropy of a softmax of `scores` over the passages of each window, towards its best ones.

    `logits`: n x words; `rows`: n, which window each belongs to; `right`: n, the right verdicts. Windows whose
    passages all have the same verdict say nothing and do not count. Half of it again where the second best verdict
    is taken for good too, in windows that have all three kinds.
    """
    torch = load("torch")
    score, best = scores(logits), logits.shape[1] - 1
    terms = []
    for row in rows.unique():
        inside = rows == row
        chances, verdicts = torch.log_softmax(score[inside], 0), right[inside]
        levels = verdicts.unique()
        if len(levels) < 2:
            continue
        top = verdicts == levels.max()
        term = -chances[top].mean()
        if len(levels) > 2 and levels.max() == best:
            term = term - 0.5 * chances[verdicts >= levels[1:].min()].mean()
        terms.append(term)
    return torch.stack(terms).mean() if terms else score.sum() * 0
