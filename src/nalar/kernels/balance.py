"""How evenly experts are used, sequence by sequence: the loss that evens it out (arXiv:2412.19437)."""

# T tokens · E experts · K experts per token · B documents

import torch
from torch import Tensor

from nalar.kernels.documents import Documents, without_waiting
from nalar.kernels.opaque import apart


@apart  # one row a document is a shape of its own in every batch
def sequence_balance(scores_TE: Tensor, ids_TK: Tensor, documents: Documents) -> Tensor:
    """How unevenly documents use the experts, fp32 []: 1 where evenly, E / K at worst (equations 17 to 20).

    For each document, the sum over experts of (share of choices times E) times (mean share of scores),
    averaged by length, so that packing does not change it. Differentiable in the scores alone.
    """
    (T, K), E = ids_TK.shape, scores_TE.shape[-1]
    length_B = without_waiting(torch.tensor(documents.lengths), scores_TE.device)
    share_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    chosen_TE = torch.zeros_like(share_TE).scatter_(-1, ids_TK, 1.0 / K)
    share_BE, chosen_BE = (_by_document(x, documents, length_B) for x in (share_TE, chosen_TE))
    return (E * chosen_BE * share_BE / length_B[:, None]).sum() / T


def _by_document(x_TE: Tensor, documents: Documents, length_B: Tensor) -> Tensor:
    """Sums over the tokens of each document, [B, E], in one order each time; on a GPU index_add has none."""
    if documents.slots_S is None:
        x_BTE: Tensor = x_TE.unflatten(0, documents.sides[0])
        return x_BTE.sum(1)
    sums_BE: Tensor = torch.segment_reduce(x_TE, "sum", lengths=length_B, axis=0, unsafe=True)
    return sums_BE
