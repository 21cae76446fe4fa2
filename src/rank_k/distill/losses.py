"""The loss for training on relevance labels: weighted cross-entropy, and a softmax over the passages of a window."""

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
    """Return the loss of a batch, a scalar.

    The loss is the sum of three terms:

    1. The mean cross-entropy of the relevance labels, in which the best label has the weight `best_weight`, plus
       `listwise` times `listwise_loss`.
    2. The mean cross-entropy of all other tokens, times `other_weight`.
    3. The first term for labels that are predicted at the last token of each passage, times `early`. For these
       predictions, the softmax covers only the labels, not the whole vocabulary.

    Args:
        hidden: The states of the last layer; batch x length x hidden size.
        head_weights: The weights of the output projection; vocabulary x hidden size.
        labels: The token to predict at each position, or `IGNORED_LABEL`; batch x length.
        relevance_labels: One line (row, position of the label, target label) per label, ordered by row; n x 3.
        passage_ends: One line (row, position of the last token, target label) per passage; m x 3.
        label_token_ids: The token ids of the labels, worst first.
        options: The weights of the terms.
    """
    torch = load("torch")
    cross_entropy = torch.nn.functional.cross_entropy
    is_learned = labels[:, 1:] != IGNORED_LABEL
    is_label = torch.zeros_like(is_learned)
    is_label[relevance_labels[:, 0], relevance_labels[:, 1] - 1] = True
    # In a small model, the output projection is the most expensive matrix product, so compute it only where needed.
    other_logits = (hidden[:, :-1][is_learned & ~is_label] @ head_weights.T).float()
    loss = hidden.sum() * 0  # 0, but with a gradient, which the trainer needs even if no token is to be learned
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
    """Return the score of each passage: the logit of the best label minus the log-sum-exp of the other logits.

    Args:
        logits: The logits of the labels, worst first; n x labels.

    Returns:
        A tensor of n scores.
    """
    return logits[:, -1] - load("torch").logsumexp(logits[:, :-1], dim=1)


def listwise_loss(logits: Any, rows: Any, target_labels: Any) -> Any:
    """Return a listwise loss, averaged over windows.

    The loss of a window is the cross-entropy of a softmax of `label_scores` over its passages. Its targets are the
    passages with the best label that occurs in the window. If the window contains three different labels or more,
    among them the best label of all, the loss is increased by half of the same cross-entropy whose targets are the
    passages with all labels except the worst one in the window. Windows in which all passages have the same label are
    left out.

    Args:
        logits: The logits of the labels, worst first; n x labels.
        rows: The number of the window that each passage belongs to; n.
        target_labels: The correct label of each passage; n.
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
