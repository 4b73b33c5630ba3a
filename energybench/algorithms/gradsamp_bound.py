"""Theorem 3.1 of GradSamp: how far the loss of a strongly convex, smooth function stays from its minimum.

Δ_k = E f(θ_k) − f*, where with chance ρ a step adds a draw of mean zero and E‖draw‖² ≤ S, and else descends the
gradient with step η. With strong convexity μ and smoothness L:

    Δ_{k+1} ≤ γ·Δ_k + ρLS/2,    so    Δ_k ≤ (Δ₀ − Δ*)·γ^k + Δ*    with    Δ* = ρLS / (2(1 − γ))

The paper prints γ = 1 − 2μη(1−ρ); its proof drops Lμη², so real runs can lie above that bound. With the term kept,
γ = 1 − (1−ρ)(2μη − Lμη²), which holds for η < 2/L and is met exactly where every curvature is μ = L. A draw with a mean
other than zero adds ρ·E⟨∇f, draw⟩, which neither bound has.
"""

from __future__ import annotations

from energybench.train.convexity import Convexity


def printed_contraction(strong_convexity: float, step: float, sampled: float) -> float:
    """γ as the paper has it. strong_convexity: μ; step: η; sampled: ρ, the share of sampled steps."""
    return 1 - 2 * strong_convexity * step * (1 - sampled)


def contraction(strong_convexity: float, smoothness: float, step: float, sampled: float) -> float:
    """γ with the term that the proof drops. Raises ValueError where η ≥ 2/L, which no bound covers."""
    if not 0 < strong_convexity <= smoothness:
        raise ValueError(f"strong convexity {strong_convexity} is not in (0, smoothness {smoothness}]")
    if not 0 < step < 2 / smoothness:
        raise ValueError(f"a step of {step} is not in (0, 2/L = {2 / smoothness})")
    return 1 - (1 - sampled) * (2 * strong_convexity * step - smoothness * strong_convexity * step**2)


def fixed_point(factor: float, smoothness: float, sampled: float, draw_square: float) -> float:
    """Δ* = ρLS / (2(1 − γ)), in the unit of the loss. factor: γ < 1; draw_square: S = E‖draw‖² of the whole vector."""
    if not factor < 1:
        raise ValueError(f"a factor of {factor} is no contraction")
    return sampled * smoothness * draw_square / (2 * (1 - factor))


def bound(steps: int, first: float, factor: float, fixed: float) -> float:
    """Δ_k after k steps from Δ₀ = first."""
    return float((first - fixed) * factor**steps + fixed)


def bounds(
    known: Convexity, first: float, step: float, sampled: float, draw_square: float, steps: int
) -> dict[str, list[float]]:
    """Both bounds on E f(θ_k) − f* for k = 0 … steps: "printed", as in the paper, and "corrected", with Lμη² kept.

    first: f(θ₀) − f*. Raises ValueError where no bound holds: η ≥ 2/L, or a printed factor that is no contraction.
    """
    bounds_by_name = {}
    for name, factor in (
        ("printed", printed_contraction(known.strong_convexity, step, sampled)),
        ("corrected", contraction(known.strong_convexity, known.smoothness, step, sampled)),
    ):
        fixed = fixed_point(factor, known.smoothness, sampled, draw_square)
        bounds_by_name[name] = [bound(number, first, factor, fixed) for number in range(steps + 1)]
    return bounds_by_name
