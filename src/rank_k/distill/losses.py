"""What is made small when verdicts are learnt: weighted cross-entropy, and a softmax over the window's passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rank_k.distill.recipes import LabelOptions
from rank_k.distill.training_examples import IGNORED
from rank_k.optional_deps import load


def label_loss(
    hidden: Any, head: Any, labels: Any, verdicts: Any, ends: Any, tokens: Sequence[int], settings: LabelOptions
) -> Any:
    """The loss of a batch, a scalar.

    `hidden`: batch x length x size, the last layer's states; `head`: vocabulary x size; `labels`: batch x length;
    `verdicts`: n x 3, of (row, place of the verdict, the right one), the rows in order; `ends`: m x 3, of (row, place
    of a passage's last token, its right verdict); `tokens`: of the verdicts, worst first.

    The mean over verdicts (the best kind weighing `best_weight`) plus `listwise` times the mean over windows of the
    softmax below; `other_weight` times the mean over all other tokens; and `early` times the same as for verdicts, but
    of what the model, on reading a passage's end, would say of it if it had to choose among the verdicts there.
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
    words = list(tokens)

    def learnt_at(logits: Any, right: Any, places: Any) -> Any:
        weights = torch.where(places[:, 2] == len(words) - 1, settings.best_weight, 1.0)
        told = (cross_entropy(logits, right, reduction="none") * weights).sum() / weights.sum()
        if not settings.listwise:
            return told
        among = logits if logits.shape[1] == len(words) else logits[:, words]
        return told + settings.listwise * listwise_loss(among, places[:, 0], places[:, 2])

    logits = (hidden[verdicts[:, 0], verdicts[:, 1] - 1] @ head.T).float()
    loss = loss + learnt_at(logits, torch.tensor(words, device=labels.device)[verdicts[:, 2]], verdicts)
    if settings.early and len(ends):
        logits = (hidden[ends[:, 0], ends[:, 1]] @ head[words].T).float()
        loss = loss + settings.early * learnt_at(logits, ends[:, 2], ends)
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
