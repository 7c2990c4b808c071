"""From α to r and η and back, under the uniform law."""

from __future__ import annotations


def noisy_share(alpha: float) -> float:
    """Return r = α/(1+α), the share of labels that were drawn at random."""
    return alpha / (1 + alpha)


def wrong_share(alpha: float, num_classes: int) -> float:
    """Return η = r(K−1)/K, the expected share of wrong labels under the uniform law."""
    return noisy_share(alpha) * (num_classes - 1) / num_classes


def alpha_of_noisy_share(share: float) -> float:
    """Return α = r/(1−r), the inverse of `noisy_share`.

    Args:
        share: r in [0, 1).

    Raises:
        ValueError: If it is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"r = {share}; the share of labels drawn at random lies in [0, 1)")
    return share / (1 - share)


def alpha_of_wrong_share(share: float, num_classes: int) -> float:
    """Return the α that has an expected share η of wrong labels, the inverse of `wrong_share`.

    Args:
        share: η in [0, (K−1)/K).
        num_classes: K, at least 2.

    Raises:
        ValueError: If it is out of range.
    """
    if num_classes < 2 or not 0 <= share < (num_classes - 1) / num_classes:
        raise ValueError(f"η = {share} at K = {num_classes}; the share of wrong labels lies in [0, (K−1)/K)")
    return alpha_of_noisy_share(share * num_classes / (num_classes - 1))
