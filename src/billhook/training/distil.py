"""Knowledge distillation from the dense network (Hinton et al., 2015)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened outputs, times T² so that its gradient keeps its scale for any T.

    Args:
        student: Logits ``[b, classes]``.
        teacher: Logits ``[b, classes]``; no gradient flows into them.
        temperature: T.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    with torch.no_grad():
        log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
    return functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2
