"""The closed forms of experiments/office_caltech10 against other formulas and libraries; published figures of 1-NN."""

import numpy as np
import pytest
from scipy import linalg

from experiments.office_caltech10 import methods, run


@pytest.fixture
def toy():
    """(source (30, 5), its labels, target (24, 5)), which differ in mean and covariance."""
    generator = np.random.default_rng(0)
    labels = np.arange(30) % 3
    source = generator.normal(size=(30, 5)) + 2.0 * np.eye(3, 5)[labels]
    target = generator.normal(size=(24, 5)) @ np.diag([1, 2, 0.5, 1, 3]) + 2.0 * np.eye(3, 5)[np.arange(24) % 3] + 1
    return source, labels, target


def test_coral_gives_the_source_the_target_s_covariance(toy):
    source, _, target = toy
    moved = source @ methods.alignment(source, target, ridge=0.0)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(target.T), rtol=1e-9, atol=1e-12)
    one, two = (np.cov(x.T) + np.eye(5) for x in (source, target))
    wanted = linalg.inv(linalg.sqrtm(one)) @ linalg.sqrtm(two)
    np.testing.assert_allclose(methods.alignment(source, target), wanted, rtol=1e-9, atol=1e-12)


def discrepancy(source, target, labels=None, guesses=None):
    """The matrices M₀ + Σ M_c of the papers, entry by entry."""
    n, m = len(source), len(target)
    matrix = np.zeros((n + m, n + m))
    matrix[:n, :n], matrix[n:, n:], matrix[:n, n:], matrix[n:, :n] = 1 / n**2, 1 / m**2, -1 / n / m, -1 / n / m
    for each in () if labels is None else np.unique(labels):
        domain = np.array([0] * n + [1] * m)
        member = np.concatenate([labels, guesses]) == each
        sizes = [member[domain == 0].sum(), member[domain == 1].sum()]
        for i, j in np.argwhere(np.outer(member, member)):
            sign = 1 if domain[i] == domain[j] else -1
            matrix[i, j] += sign / (sizes[domain[i]] * sizes[domain[j]])
    return matrix


@pytest.mark.parametrize("classes", [False, True])
def test_components_solve_the_papers_eigenproblem(toy, classes):
    source, labels, target = toy
    both, guesses = np.concatenate([source, target]), np.arange(24) % 3
    contrasts = methods.differences(30, 24)
    if classes:
        contrasts = np.concatenate([contrasts, methods.class_differences(labels, guesses)], axis=1)
    matrix = discrepancy(source, target, *((labels, guesses) if classes else ()))
    np.testing.assert_allclose(contrasts @ contrasts.T, matrix, atol=1e-15)
    kernel, centring = both @ both.T, np.eye(54) - 1 / 54
    cost = kernel @ (matrix / np.linalg.norm(matrix)) @ kernel + 0.7 * np.eye(54)
    values, vectors = linalg.eig(linalg.solve(cost, kernel @ centring @ kernel))
    order = np.argsort(-values.real)[:3]
    wanted = (kernel @ vectors.real[:, order]) / np.sqrt(
        np.diag(vectors[:, order].real.T @ cost @ vectors[:, order].real)
    )
    found = methods.components(both, contrasts, count=3, penalty=0.7)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), rtol=1e-6, atol=1e-9)


def test_without_a_discrepancy_components_are_kernel_pca(toy):
    from sklearn.decomposition import KernelPCA

    both = np.concatenate([toy[0], toy[2]])
    both = both - both.mean(axis=0)
    found = methods.components(both, np.zeros((54, 1)), count=4, penalty=1.0)
    wanted = KernelPCA(4, kernel="linear").fit_transform(both)
    np.testing.assert_allclose(np.abs(methods.unit(found.T)), np.abs(methods.unit(wanted.T)), rtol=1e-8, atol=1e-10)


def test_tca_brings_the_means_together_and_jda_those_of_the_classes(toy):
    source, labels, target = toy
    options = {"count": 3, "penalty": 1e-3}
    one, two = methods.transfer_components(source, target, **options)
    spread = np.concatenate([one, two]).std()
    assert np.linalg.norm(one.mean(axis=0) - two.mean(axis=0)) < 0.01 * spread
    assert np.linalg.norm(source.mean(axis=0) - target.mean(axis=0)) > np.concatenate([source, target]).std()
    truth = np.arange(24) % 3
    contrasts = np.concatenate([methods.differences(30, 24), methods.class_differences(labels, truth)], axis=1)
    joint = methods.components(np.concatenate([source, target]), contrasts, count=1, penalty=1e-3)
    apart = [abs(joint[:30][labels == c].mean() - joint[30:][truth == c].mean()) for c in range(3)]
    assert max(apart) < 0.05 * joint.std()


def test_jda_with_one_class_is_tca_and_with_one_pass_too(toy):
    source, labels, target = toy
    first = methods.joint_adaptation(source, labels, target, count=2, passes=1)
    one, two = methods.transfer_components(source, target, count=2, lengths=True)
    np.testing.assert_array_equal(first, methods.nearest(one, labels, two))
    marginal = methods.differences(30, 24)
    twice = np.concatenate([marginal, methods.class_differences(np.zeros(30), np.zeros(24))], axis=1)
    both = np.concatenate([source, target])
    once, again = (np.abs(methods.components(both, e, count=2, penalty=1.0)) for e in (marginal, twice))
    np.testing.assert_allclose(once, again, rtol=1e-8, atol=1e-12)
    assert np.isfinite(methods.class_differences(labels, np.zeros(24))).all(), "a class that nobody was guessed to be"


def test_the_nearest_neighbour_is_scikit_learn_s(toy):
    from sklearn.neighbors import KNeighborsClassifier

    source, labels, target = toy
    wanted = KNeighborsClassifier(1).fit(source, labels).predict(target)
    np.testing.assert_array_equal(methods.nearest(source, labels, target), wanted)


def test_the_published_figures_of_the_nearest_neighbour(data_dir):
    """Gong et al.'s features, prepared as Long et al. 2013 do, whose table has these figures."""
    assert {letter: x.shape for letter, (x, _) in run.domains().items()} == {
        "C": (1123, 800),
        "A": (958, 800),
        "W": (295, 800),
        "D": (157, 800),
    }
    found = {
        name: round(100 * numbers["accuracy"], 2) for name, numbers in run.record(methods.nearest)["metrics"].items()
    }
    assert (found["C → A"], found["A → W"], found["D → W"], found["mean"]) == (23.7, 29.83, 63.39, 31.37)
