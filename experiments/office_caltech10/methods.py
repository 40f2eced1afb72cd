"""Vectors of two domains made alike in closed form: CORAL, transfer component and joint distribution analysis.

Axes: N labelled examples of the source, M unlabelled ones of the target, D features, K components, Y classes.
"""

import numpy as np


def nearest(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The label of the nearest of the examples `train` (N, D) for each of `test` (M, D)."""
    distances = np.square(train).sum(axis=1) - 2 * test @ train.T
    return labels[distances.argmin(axis=1)]


def unit(examples: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1."""
    return examples / np.linalg.norm(examples, axis=1, keepdims=True)


def alignment(source: np.ndarray, target: np.ndarray, *, ridge: float = 1.0) -> np.ndarray:
    """CORAL's matrix A (D, D): whitens with the source's covariance, and colours with the target's.

    A = (C_source + ridge · I)^(−1/2) (C_target + ridge · I)^(1/2). Sun, Feng and Saenko 2016, Return of frustratingly
    easy domain adaptation, AAAI, arXiv 1511.05547, where the ridge is 1.
    """
    return _power(source, ridge, -0.5) @ _power(target, ridge, 0.5)


def _power(examples: np.ndarray, ridge: float, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.cov(examples, rowvar=False) + ridge * np.eye(examples.shape[1]))
    return (vectors * values**exponent) @ vectors.T


def differences(count: int, others: int) -> np.ndarray:
    """e (N + M, 1) with eᵀ X = mean of the source − mean of the target, for the examples X of both, source first."""
    return np.concatenate([np.full(count, 1 / count), np.full(others, -1 / others)])[:, None]


def class_differences(labels: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """(N + M, Y), as `differences` for each class of `labels` (N,); `guesses` (M,) are the target's.

    A class that nothing was guessed to be has the mean of the source alone, as in the authors' code.
    """
    columns = []
    for each in np.unique(labels):
        own, other = (found == each for found in (labels, guesses))
        columns.append(np.concatenate([own / own.sum(), other / -max(other.sum(), 1)]))
    return np.stack(columns, axis=1)


def components(examples: np.ndarray, contrasts: np.ndarray, *, count: int, penalty: float) -> np.ndarray:
    """The examples (N + M, D) in the K directions that keep most variance where the contrasts are small: (N + M, K).

    With the linear kernel matrix K = X Xᵀ, the centring matrix H and M = E Eᵀ / ‖E Eᵀ‖ of the contrasts E, W holds the
    eigenvectors of A⁻¹ K H K with the largest eigenvalues, A = K M K + penalty · I, and the result is K W. The papers
    scale them to Wᵀ K H K W = I, which gives every direction the same variance; here Wᵀ A W = I, so that a direction
    counts by its eigenvalue: by this scale the published figures are reached. It is computed where K is not zero, in
    at most D dimensions.

    Args:
      examples: X.
      contrasts: E (N + M, C); all zero for none.
      count: of directions; fewer where K has a smaller rank.
      penalty: on the squared length of W.
    """
    from scipy.linalg import eigh

    values, vectors = np.linalg.eigh(examples.T @ examples)
    kept = values > 1e-9 * values[-1]
    values = values[kept]
    basis = examples @ vectors[:, kept] / np.sqrt(values)  # K = basis · diag(values) · basisᵀ
    images = basis * values
    centred = images - images.mean(axis=0)
    size = np.linalg.norm(contrasts.T @ contrasts)  # of E Eᵀ too
    held = images.T @ contrasts / np.sqrt(size) if size else images.T @ contrasts
    rank = len(values)
    chosen = (max(rank - count, 0), rank - 1)
    _, found = eigh(centred.T @ centred, held @ held.T + penalty * np.eye(rank), subset_by_index=chosen)
    return images @ found[:, ::-1]


def transfer_components(
    source: np.ndarray, target: np.ndarray, *, count: int, penalty: float = 1.0, lengths: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """TCA: (source (N, K), target (M, K)), embedded so that their means are near each other.

    Pan, Tsang, Kwok and Yang 2011, Domain adaptation via transfer component analysis, IEEE TNN, with a linear kernel.

    Args:
      source: (N, D).
      target: (M, D).
      count: K.
      penalty: the paper's μ; the matrix of the discrepancy has Frobenius norm 1 here.
      lengths: scale each example to length 1, before and after.
    """
    return _embedded(source, target, differences(len(source), len(target)), count, penalty, lengths)


def _embedded(source, target, contrasts, count, penalty, lengths):
    both = np.concatenate([source, target])
    found = components(unit(both) if lengths else both, contrasts, count=count, penalty=penalty)
    found = unit(found) if lengths else found
    return found[: len(source)], found[len(source) :]


def joint_adaptation(
    source: np.ndarray,
    labels: np.ndarray,
    target: np.ndarray,
    *,
    count: int,
    penalty: float = 1.0,
    passes: int = 10,
    lengths: bool = True,
) -> np.ndarray:
    """JDA: guesses (M,) of the target's labels; the means of the classes are made near each other too.

    The first pass is TCA with the nearest neighbour; each further one takes the classes of the target from the guesses
    of the one before. Long, Wang, Ding, Sun and Yu 2013, Transfer feature learning with joint distribution adaptation,
    ICCV.

    Args:
      source: (N, D).
      labels: (N,).
      target: (M, D).
      count: K.
      penalty: the paper's λ; the matrix of the discrepancies has Frobenius norm 1 here, as in the authors' code.
      passes: in all.
      lengths: scale each example to length 1, before and after, as in the authors' code.
    """
    marginal = differences(len(source), len(target))
    contrasts, guesses = marginal, None
    for _ in range(passes):
        one, two = _embedded(source, target, contrasts, count, penalty, lengths)
        guesses = nearest(one, labels, two)
        contrasts = np.concatenate([marginal, class_differences(labels, guesses)], axis=1)
    return guesses
