"""The probability that neighbours give to a token, and its mixture with the model's.

Of a query with neighbours at squared distances d_i, after which v_i followed, and a temperature T
(arXiv 1911.00172, eq. 2 and 3):

    p_knn(y) = sum of exp(-d_i / T) over v_i = y / sum of exp(-d_i / T)
    p(y) = lambda p_knn(y) + (1 - lambda) p_model(y)

Shapes: Q queries, K neighbours, C temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
"""Of squared distances between vectors of length 1, which are 4 at most."""
LAMBDAS = tuple(round(0.02 * step, 2) for step in range(36))
"""0, by which the model stays alone, to 0.7."""


def target_probabilities(
    distances_QK: np.ndarray, values_QK: np.ndarray, targets_Q: np.ndarray, temperatures: Sequence[float]
) -> np.ndarray:
    """p_knn of each query's target at each temperature.

    Args:
        distances_QK: squared distances; infinite where there is no neighbour.
        values_QK: the token that followed each neighbour.
        targets_Q: the token that follows the query.
        temperatures: C of them.

    Returns:
        float64 (Q, C); 0 for a query without neighbours.
    """
    hit_QK = values_QK == targets_Q[:, None]
    nearest_Q1 = distances_QK.min(axis=1, keepdims=True)
    # The nearest has weight 1: nothing under- or overflows, and the quotient stays what it is.
    further_QK = distances_QK - np.where(np.isfinite(nearest_Q1), nearest_Q1, 0)
    found_QC = np.empty((len(targets_Q), len(temperatures)))
    for column, temperature in enumerate(temperatures):
        weights_QK = np.exp(further_QK / -temperature)
        total_Q = weights_QK.sum(axis=1, dtype=np.float64)
        hits_Q = (weights_QK * hit_QK).sum(axis=1, dtype=np.float64)
        found_QC[:, column] = np.divide(hits_Q, total_Q, out=np.zeros_like(total_Q), where=total_Q > 0)
    return found_QC


def mixed_nats(nats_T: np.ndarray, probability_T: np.ndarray, weight: float) -> np.ndarray:
    """Negative log-likelihood of each token under the mixture, (T,).

    Args:
        nats_T: that of the model.
        probability_T: p_knn of the token.
        weight: lambda, below 1.
    """
    return -np.log(weight * probability_T + (1 - weight) * np.exp(-nats_T))


@dataclass(frozen=True)
class Mixture:
    """What was chosen.

    Attributes:
        temperature: one of TEMPERATURES.
        weight: lambda, one of LAMBDAS.
    """

    temperature: float
    weight: float

    @classmethod
    def choose(cls, nats_T: np.ndarray, probability_TC: np.ndarray) -> Mixture:
        """The one with the least loss on these tokens; of equal ones the first, by temperature, then by lambda.

        Args:
            nats_T: of the model.
            probability_TC: p_knn at each of TEMPERATURES.
        """
        sums = [
            [float(mixed_nats(nats_T, probability_TC[:, column], weight).sum()) for weight in LAMBDAS]
            for column in range(len(TEMPERATURES))
        ]
        column, place = divmod(int(np.argmin(sums)), len(LAMBDAS))
        return cls(TEMPERATURES[column], LAMBDAS[place])

    def nats(self, nats_T: np.ndarray, probability_TC: np.ndarray) -> np.ndarray:
        """Loss of each token, (T,)."""
        return mixed_nats(nats_T, probability_TC[:, TEMPERATURES.index(self.temperature)], self.weight)
