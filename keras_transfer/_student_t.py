"""Student's t distribution, for intervals around a mean of few values."""

from __future__ import annotations

import math


def t_cdf(t: float, degrees: int) -> float:
    """Returns the probability of a value below `t`, in closed form.

    Args:
        t: The value.
        degrees: Degrees of freedom, a whole number of at least 1.

    Reference:
        - Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees % 2:
        # cos + 2/3 cos^3 + 2/3 4/5 cos^5 + ...; none for one degree.
        term, total = cosine, 0.0
        for k in range(1, degrees - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        between = 2 / math.pi * (angle + sine * total)
    else:
        # 1 + 1/2 cos^2 + 1/2 3/4 cos^4 + ...
        term, total = 1.0, 0.0
        for k in range(0, degrees - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        between = sine * total
    return 0.5 + between / 2


def t_quantile(probability: float, degrees: int) -> float:
    """Returns the value that a Student's t variable stays below with `probability`.

    Args:
        probability: In (0, 1).
        degrees: Degrees of freedom, a whole number of at least 1.
    """
    # As an angle, so that the whole line is an interval that can be halved.
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_cdf(math.sqrt(degrees) * math.tan(middle), degrees) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)
