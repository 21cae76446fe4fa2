"""What is made small when verdicts are learnt: weighted cross-entropy, and a softmax over the window's passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rank_k.distill.recipes import LabelOptions
from rank_k.distill.training_examples import IGNORED_LABEL
from rank_k.optional_deps import load


def label_loss(
    hidden: Any,
    head_weights: Any,
    labels: Any,
    relevance_labels: Any,
    passage_ends: Any,
    label_token_ids: Sequence[int],
    options: LabelOptions,
) -> Any:
    """The loss of a batch, a scalar.

    `hidden`: batch x length x size, the last layer's states; `head_weights`: vocabulary x size; `labels`: batch x
    length; `relevance_labels`: n x 3, of (row, position of the label, target label), rows in order; `passage_ends`:
    m x 3, of (row, position of a passage's last token, target label); `label_token_ids`: of the labels, worst first.

    The mean over verdicts (the best kind weighing `best_weight`) plus `listwise` times the mean over windows of the
    softmax below; `other_weight` times the mean over all other tokens; and `early` times the same as for verdicts, but
    of what the model, on reading a passage's end, would say of it if it had to choose among the verdicts there.
    """
    torch = load("torch")
    cross_entropy = torch.nn.functional.cross_entropy
    is_learned = labels[:, 1:] != IGNORED_LABEL
    is_label = torch.zeros_like(is_learned)
    is_label[relevance_labels[:, 0], relevance_labels[:, 1] - 1] = True
    # The head's product is the dearest single one of a small model: only where something is learnt.
    other_logits = (hidden[:, :-1][is_learned & ~is_label] @ head_weights.T).float()
    loss = hidden.sum() * 0  # where there is nothing to learn there is still something to go back through
    if len(other_logits):
        loss = options.other_weight * cross_entropy(other_logits, labels[:, 1:][is_learned & ~is_label])
    if not len(relevance_labels):
        return loss
    word_ids = list(label_token_ids)

    def loss_at(logits: Any, target_labels: Any, label_rows: Any) -> Any:
        weights = torch.where(label_rows[:, 2] == len(word_ids) - 1, options.best_weight, 1.0)
        loss = (cross_entropy(logits, target_labels, reduction="none") * weights).sum() / weights.sum()
        label_logits = logits if logits.shape[1] == len(word_ids) else logits[:, word_ids]
        return loss + options.listwise * listwise_loss(label_logits, label_rows[:, 0], label_rows[:, 2])

    logits = (hidden[relevance_labels[:, 0], relevance_labels[:, 1] - 1] @ head_weights.T).float()
    loss = loss + loss_at(
        logits, torch.tensor(word_ids, device=labels.device)[relevance_labels[:, 2]], relevance_labels
    )
    if options.early and len(passage_ends):
        logits = (hidden[passage_ends[:, 0], passage_ends[:, 1]] @ head_weights[word_ids].T).float()
        loss = loss + options.early * loss_at(logits, passage_ends[:, 2], passage_ends)
    return loss


def label_scores(logits: Any) -> Any:
    """How much better than all others the best verdict is, for each of n passages (`logits`: n x words)."""
    return logits[:, -1] - load("torch").logsumexp(logits[:, :-1], dim=1)


def listwise_loss(logits: Any, rows: Any, target_labels: Any) -> Any:
    """Cross-entropy of a softmax of `label_scores` over the passages of each window, towards its best ones.

    `logits`: n x words; `rows`: n, which window each belongs to; `target_labels`: n, the right verdicts. Windows whose
    passages all have the same verdict say nothing and do not count. Half of it again where the second best verdict
    is taken for good too, in windows that have all three kinds.
    """
    torch = load("torch")
    passage_scores, best_label = label_scores(logits), logits.shape[1] - 1
    window_losses = []
    for row in rows.unique():
        in_window = rows == row
        log_probabilities, window_labels = torch.log_softmax(passage_scores[in_window], 0), target_labels[in_window]
        distinct_labels = window_labels.unique()
        if len(distinct_labels) < 2:
            continue
        is_best = window_labels == distinct_labels.max()
        window_loss = -log_probabilities[is_best].mean()
        if len(distinct_labels) > 2 and distinct_labels.max() == best_label:
            window_loss = window_loss - 0.5 * log_probabilities[window_labels >= distinct_labels[1:].min()].mean()
        window_losses.append(window_loss)
    return torch.stack(window_losses).mean() if window_losses else passage_scores.sum() * 0
