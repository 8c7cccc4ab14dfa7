"""Training and evaluation with bfloat16 autocast on a CPU."""

import time

import torch
from torch import nn


def convert_linear_layers(language_model: nn.Module, dtype: torch.dtype) -> None:
    """
    Converts the frozen weights that autocast would convert in each pass, which takes a fifth of a training step's time on a
    CPU. The results are the same: embeddings, norms and hidden states keep their precision.

    Args:
        language_model (`nn.Module`): the language model without its head, which shares the embeddings.
        dtype (`torch.dtype`): dtype of autocast.
    """
    for module in language_model.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)


def is_bfloat16_faster(device: torch.device, size: int = 512, repetitions: int = 20) -> bool:
    """
    Whether a device multiplies matrices faster in bfloat16 than in float32. Some CPUs have instructions for it, with which a
    step of the demo takes half the time; others emulate it, which is many times slower.

    Args:
        device (`torch.device`): device of the training.
        size (`int`, defaults to 512): rows and columns of the matrices.
        repetitions (`int`, defaults to 20): products of which the fastest counts.

    Returns:
        `bool`: whether it takes less than three quarters of the time.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        times = []
        for _ in range(repetitions):
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the result
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.75 * seconds[torch.float32]
