"""How far apart two domains are, told from samples of both. Pure functions, in float32.

Rows may be weighted, (N,) and (M,): a row of weight 0 has no part in any statistic, and weights of 1 change nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

POWERS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""The kernels' bandwidths are 2 to these powers times the mean squared distance."""
TINY = 1e-30
LEAST_BANDWIDTH = 1e-6
"""Rows that are all alike have none of their own, and rounding would be their distance."""


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """‖x_i − y_j‖², (N, M), of rows (N, D) and (M, D)."""
    products = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum(jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1) - 2 * products, 0.0)


def gaussian_kernels(distances: jax.Array, bandwidth: jax.Array, powers: Sequence[float] = POWERS) -> jax.Array:
    """The mean over `powers` p of exp(−d / (2^p · `bandwidth`)), for squared distances d of any shape."""
    scaled = distances / jnp.maximum(bandwidth, LEAST_BANDWIDTH)
    return sum(jnp.exp(-scaled / 2.0**power) for power in powers) / len(powers)


def mmd(
    source: jax.Array,
    target: jax.Array,
    source_weight: jax.Array | None = None,
    target_weight: jax.Array | None = None,
    *,
    powers: Sequence[float] = POWERS,
    unbiased: bool = True,
) -> jax.Array:
    """The squared maximum mean discrepancy with several Gaussian kernels (Gretton et al. 2012, Long et al. 2015).

    mean k(x, x′) + mean k(y, y′) − 2 · mean k(x, y), with the mean squared distance of all pairs of rows as the
    kernels' bandwidth; no gradient goes through it.

    Args:
      source: (N, D).
      target: (M, D).
      source_weight: (N,); None is 1.
      target_weight: (M,); None is 1.
      powers: see `gaussian_kernels`.
      unbiased: leave out the pairs of a row with itself (U-statistic, which may be below 0); else a V-statistic, which
        is biased upwards and never below 0.

    Returns:
      (): 0 where a domain has too few rows.
    """
    count = len(source)
    rows, weight = _joined(source, target, source_weight, target_weight)
    # Distances do not see a shift, and rounding does.
    rows = rows - jax.lax.stop_gradient(_mean(rows, weight))
    distances = squared_distances(rows, rows)
    pairs = weight[:, None] * weight
    others = pairs * (1 - jnp.eye(len(rows)))
    bandwidth = jnp.sum(others * distances) / jnp.maximum(jnp.sum(others), TINY)
    kernels = gaussian_kernels(distances, jax.lax.stop_gradient(bandwidth), powers)
    pairs = others if unbiased else pairs
    first, second = slice(count), slice(count, None)
    blocks = ((first, first), (second, second), (first, second))
    sums = [jnp.sum(pairs[block]) for block in blocks]
    within, other, across = (
        jnp.sum((pairs * kernels)[block]) / jnp.maximum(total, TINY) for block, total in zip(blocks, sums, strict=True)
    )
    return jnp.where((sums[0] > 0) & (sums[1] > 0), within + other - 2 * across, 0.0)


def linear_mmd(
    source: jax.Array,
    target: jax.Array,
    source_weight: jax.Array | None = None,
    target_weight: jax.Array | None = None,
    *,
    powers: Sequence[float] = POWERS,
) -> jax.Array:
    """As `mmd`, unbiased, from N / 2 quadruples instead of N² pairs (Gretton et al. 2012, section 6): linear in N.

    Each quadruple of two rows of each domain gives k(x, x′) + k(y, y′) − k(x, y′) − k(x′, y). Rows that are left over
    have no part. A quadruple weighs the product of its rows' weights.
    """
    count = len(source)
    rows, weight = _joined(source, target, source_weight, target_weight)
    half = min(count, len(rows) - count) // 2

    def quadruples(a: jax.Array) -> list[jax.Array]:
        return [part[i : 2 * half : 2] for part in (a[:count], a[count:]) for i in (0, 1)]

    x, other_x, y, other_y = quadruples(rows)
    weight = jnp.prod(jnp.stack(quadruples(weight)), axis=0)
    distances = jnp.sum(jnp.square(jnp.stack([x - other_x, y - other_y, x - other_y, other_x - y])), axis=-1)
    total = jnp.maximum(jnp.sum(weight), TINY)
    bandwidth = jnp.sum(distances * weight) / (4 * total)
    kernels = gaussian_kernels(distances, jax.lax.stop_gradient(bandwidth), powers)
    return jnp.sum((kernels[0] + kernels[1] - kernels[2] - kernels[3]) * weight) / total


def covariance(x: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """The covariance matrix (D, D) of rows (N, D), divided by N − 1 where the weights are 1.

    With weights by Σw − Σw² / Σw; 0 where there are not two rows.
    """
    x = x.astype(jnp.float32)
    weight = _weight(x, weight)
    centred = x - _mean(x, weight)
    total = jnp.sum(weight)
    freedom = total - jnp.sum(weight * weight) / jnp.maximum(total, TINY)
    products = jnp.matmul((centred * weight[:, None]).T, centred, precision="highest")
    return jnp.where(freedom > 0, products / jnp.maximum(freedom, TINY), 0.0)


def coral(
    source: jax.Array,
    target: jax.Array,
    source_weight: jax.Array | None = None,
    target_weight: jax.Array | None = None,
) -> jax.Array:
    """‖C_S − C_T‖² / (4 D²), of the covariances of rows (N, D) and (M, D); Frobenius norm (Sun and Saenko 2016)."""
    difference = covariance(source, source_weight) - covariance(target, target_weight)
    return jnp.sum(difference * difference) / (4 * source.shape[1] ** 2)


def _weight(x: jax.Array, weight: jax.Array | None) -> jax.Array:
    return jnp.ones(len(x)) if weight is None else jnp.asarray(weight, jnp.float32)


def _mean(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(weight, x, precision="highest") / jnp.maximum(jnp.sum(weight), TINY)


def _joined(
    source: jax.Array, target: jax.Array, source_weight: jax.Array | None, target_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The rows of both domains, (N + M, D) in float32, and their weights."""
    weights = [_weight(source, source_weight), _weight(target, target_weight)]
    return jnp.concatenate([source, target]).astype(jnp.float32), jnp.concatenate(weights)


# --- What a report tells, on the host and in float64: rows are NumPy arrays, and all of them count.

FOLDS = 5
STILL = 1e-6
"""Rows of float32 whose `spread` is below do not vary: what is left is rounding."""


def median_bandwidth(x: np.ndarray) -> float:
    """The median distance of two different rows of (N, D); 1 where it is 0."""
    from scipy.spatial.distance import pdist

    distance = float(np.median(pdist(np.asarray(x, np.float64)))) if len(x) > 1 else 0.0
    return distance if distance > 0 else 1.0


def rbf_kernel(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """exp(−‖x_i − y_j‖² / (2 · bandwidth²)), (N, M)."""
    from scipy.spatial.distance import cdist

    distances = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    return np.exp(-distances / (2 * bandwidth**2))


def median_mmd(source: np.ndarray, target: np.ndarray, bandwidth: float | None = None) -> float:
    """MMD² with one Gaussian kernel, unbiased (Gretton et al. 2012, equation 3): it may be a little below 0.

    Args:
      source: (N, D), two rows at least.
      target: (M, D), two rows at least.
      bandwidth: of `rbf_kernel`; None is the median distance of all rows of both.
    """
    bandwidth = median_bandwidth(np.concatenate([source, target])) if bandwidth is None else bandwidth

    def within(x: np.ndarray) -> float:
        return (rbf_kernel(x, x, bandwidth).sum() - len(x)) / (len(x) * (len(x) - 1))

    return float(within(source) + within(target) - 2 * rbf_kernel(source, target, bandwidth).mean())


def proxy_a_distance(source: np.ndarray, target: np.ndarray, *, folds: int = FOLDS, seed: int = 0) -> float:
    """2 (1 − 2 ε), ε the error of a linear classifier that tells the domains apart (Ben-David et al. 2007).

    The classifier is a logistic regression on standardised columns; ε is its error on rows that it was not fitted to,
    by stratified cross-validation, as the mean of the errors in both domains, so that their sizes do not matter.

    Args:
      source: (N, D), at least `folds` rows.
      target: (M, D), at least `folds` rows.
      folds: parts of the cross-validation.
      seed: of the parts.

    Returns:
      From 0, where they cannot be told apart (an error above 1/2, which is chance, counts as 1/2), to 2.
    """
    from sklearn.metrics import balanced_accuracy_score

    rows, domain = _both(source, target)
    found = domain_probabilities(rows, domain, folds=folds, seed=seed) > 0.5
    error = 1 - balanced_accuracy_score(domain, found)
    return float(max(2 * (1 - 2 * error), 0.0))


def domain_probabilities(
    rows: np.ndarray, domain: np.ndarray, *, folds: int = FOLDS, seed: int = 0, strength: float = 1.0
) -> np.ndarray:
    """The probability of domain 1 of each row, by a logistic regression that was not fitted to that row.

    Args:
      rows: (N, D); columns are standardised by the rows that are fitted to.
      domain: (N,), 0 or 1; each at least `folds` times. Both domains weigh the same, whatever their sizes.
      folds: parts of the stratified cross-validation.
      seed: of the parts.
      strength: scikit-learn's C, the inverse of the L2 penalty.

    Returns:
      (N,)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    fitted = make_pipeline(StandardScaler(), model)
    return cross_val_predict(fitted, np.asarray(rows, np.float64), domain, cv=parts, method="predict_proba")[:, 1]


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """‖YᵀX‖² / (‖XᵀX‖ · ‖YᵀY‖) of centred features of the same rows (Kornblith et al. 2019); Frobenius norms.

    Args:
      x: (N, D).
      y: (N, E).

    Returns:
      From 0 to 1, which means: equal but for a rotation, a shift and a scale; nan where one does not vary at all.
    """
    if min(spread(x), spread(y)) < STILL:
        return float("nan")
    x, y = (np.asarray(a, np.float64) - np.mean(a, axis=0, dtype=np.float64) for a in (x, y))
    # With fewer rows than columns the Gram matrices of rows are the smaller ones, and tell the same.
    grams = [a @ a.T for a in (x, y)] if len(x) < max(x.shape[1], y.shape[1]) else None
    if grams is not None:
        across, norms = np.sum(grams[0] * grams[1]), [np.linalg.norm(gram) for gram in grams]
    else:
        across, norms = np.sum((x.T @ y) ** 2), [np.linalg.norm(a.T @ a) for a in (x, y)]
    return float(across / (norms[0] * norms[1]))


def effective_rank(x: np.ndarray) -> float:
    """exp(entropy of the shares of the singular values) of centred rows (N, D) (Roy and Vetterli 2007).

    From 1, where all rows lie on a line, to min(N − 1, D); 0 where they do not vary.
    """
    if spread(x) < STILL:
        return 0.0
    x = np.asarray(x, np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    return float(np.exp(-np.sum(shares * np.log(np.maximum(shares, TINY)))))


def spread(x: np.ndarray) -> float:
    """√(variance, summed over the columns) / √(mean ‖x‖²) of rows (N, D): from 0, where all rows are alike, to 1."""
    x = np.asarray(x, np.float64)
    size = np.mean(np.sum(x**2, axis=1))
    return float(np.sqrt(np.sum(x.var(axis=0)) / size)) if size > 0 else 0.0


def _both(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the rows of both, 0 for those of `source` and 1 for those of `target`)."""
    return np.concatenate([source, target]), np.repeat([0, 1], [len(source), len(target)])
