"""K-means clustering, for keys that are initialized from real queries."""

from __future__ import annotations

import torch


@torch.no_grad()
def cluster_centers(points: torch.Tensor, count: int, seed: int, iterations: int = 25) -> torch.Tensor:
    """
    Centers of a k-means clustering (k-means++ initialization, Lloyd's iterations), deterministic under `seed`.

    With fewer distinct points than centers, the remaining centers are points with noise of a tenth of the points'
    standard deviation.

    Args:
        points (`torch.FloatTensor` of shape `(num_points, embedding_size)`)
        count (`int`): number of centers.
        seed (`int`)
        iterations (`int`, defaults to 25): maximum number of iterations.

    Returns:
        `torch.FloatTensor` of shape `(count, embedding_size)`, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    points = points.float().cpu()
    spread = points.std(dim=0, correction=0) if len(points) > 1 else points.new_zeros(points.shape[1])
    centers = points[torch.randint(len(points), (1,), generator=generator, device=points.device)]
    distances = torch.cdist(points, centers).squeeze(-1).square()
    while len(centers) < min(count, len(points)) and float(distances.max()) > 1e-12:
        center = points[torch.multinomial(distances, 1, generator=generator)]
        centers = torch.cat([centers, center])
        distances = torch.minimum(distances, torch.cdist(points, center).squeeze(-1).square())
    for _ in range(iterations):
        nearest = torch.cdist(points, centers).argmin(dim=-1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=len(centers)).unsqueeze(-1)
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    missing = count - len(centers)
    if missing > 0:
        base = points[torch.randint(len(points), (missing,), generator=generator, device=points.device)]
        noise = torch.randn(base.shape, generator=generator, device=points.device) * (0.1 * spread.clamp_min(1e-4))
        centers = torch.cat([centers, base + noise])
    return centers
