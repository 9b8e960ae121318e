"""Filter selection: against least squares solved anew for every subset, literal tables, and counted work."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from billhook.compensation import backward_on_gram, fp_backward, fp_omp
from billhook.errors import InputError

BOTH = pytest.mark.parametrize("select", [fp_backward, fp_omp])


# The oracles


def residual(filters: np.ndarray, kept: list[int]) -> np.ndarray:
    """What least squares on some filters leaves of all."""
    if not kept:
        return filters
    return filters - np.linalg.lstsq(filters[kept].T, filters.T, rcond=None)[0].T @ filters[kept]


def error(filters: np.ndarray, kept: list[int]) -> float:
    return float((residual(filters, kept) ** 2).sum())


def greedy_removal(filters: np.ndarray) -> list[int]:
    """Every candidate removed on trial, at every step."""
    left, gone = list(range(len(filters))), []
    while left:
        costs = [error(filters, [other for other in left if other != one]) for one in left]
        gone.append(left.pop(int(np.argmin(costs))))
    return gone


def scores(filters: np.ndarray, kept: list[int], normalised: bool, ridge: float = 0.0) -> np.ndarray:
    """FP-OMP's, from the definition."""
    if normalised:
        filters = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    rest = residual(filters, kept)
    if ridge and kept:
        atoms = filters[kept]
        lengths = (atoms**2).sum(axis=1)
        rest = filters - np.linalg.solve(atoms @ atoms.T + ridge * np.diag(lengths), atoms @ filters.T).T @ atoms
    rest[kept] = 0  # a filter that is selected represents itself
    products = np.abs(rest @ filters.T).sum(axis=0)
    products[kept] = -1
    return products


def pursuit(filters: np.ndarray, normalised: bool, ridge: float = 0.0) -> list[int]:
    kept: list[int] = []
    while len(kept) < len(filters):
        found = scores(filters, kept, normalised, ridge)
        kept.append(int(np.argmax(found >= found.max() * (1 - 1e-10))))  # two at unit length always tie
    return kept


def random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Filters of very different lengths, which lean on each other."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=shape) + 0.7 * rng.normal(size=(*shape[:-2], 1, shape[-1]))
    return rows * 10.0 ** rng.uniform(-2, 2, size=(*shape[:-1], 1))


full_rank = st.tuples(st.integers(1, 7), st.integers(0, 6), st.integers(0, 10_000)).map(
    lambda drawn: random((drawn[0], drawn[0] + drawn[1]), drawn[2])
)
integers = st.integers(1, 7).flatmap(
    lambda count: st.integers(1, 5).flatmap(
        lambda features: st.lists(
            st.lists(st.integers(-2, 2), min_size=features, max_size=features), min_size=count, max_size=count
        )
    )
).map(lambda rows: np.array(rows, dtype=np.float64))  # fmt: skip


# What holds for every result


def check_path(filters: np.ndarray, selection) -> None:
    """Sets are nested, and errors and coefficients are those of least squares on each of them."""
    total = (filters**2).sum()
    assert sorted(selection.order[0].tolist()) == list(range(len(filters)))
    for count in range(len(filters) + 1):
        kept, gone = selection.kept(count), selection.removed(count)
        assert kept.tolist() == sorted(selection.order[0, :count].tolist())
        assert sorted([*kept, *gone]) == list(range(len(filters)))
        assert selection.errors[count] == pytest.approx(error(filters, kept.tolist()), rel=1e-7, abs=1e-10 * total)
        matrix = selection.compensation(count)
        assert matrix.shape == (len(gone), len(kept))
        rest = filters[gone] - matrix @ filters[kept]
        assert (rest**2).sum() == pytest.approx(selection.errors[count], rel=1e-7, abs=1e-10 * total)


@given(full_rank)
@settings(max_examples=30)
def test_backward_is_the_greedy_removal(filters):
    selection = fp_backward(filters)
    assert selection.order[0, ::-1].tolist() == greedy_removal(filters)
    assert selection.solver == "exact"
    check_path(filters, selection)


@given(full_rank, st.booleans())
@settings(max_examples=30)
def test_omp_is_the_pursuit(filters, normalised):
    selection = fp_omp(filters, normalised=normalised)
    assert selection.order[0].tolist() == pursuit(filters, normalised)
    assert selection.solver == "exact"
    check_path(filters, selection)


@given(integers)
@settings(max_examples=60)
def test_backward_on_dependent_filters(filters):
    """No removal costs more than the cheapest one, wherever several cost the same."""
    selection = fp_backward(filters)
    check_path(filters, selection)
    rank = np.linalg.matrix_rank(filters)
    assert selection.rank == rank
    assert selection.solver == ("exact" if rank == len(filters) else "pseudo-inverse")
    assert np.all(selection.errors[rank:] == 0)
    left = list(range(len(filters)))
    for one in selection.order[0, ::-1].tolist():
        best = min(error(filters, [other for other in left if other != out]) for out in left)
        left.remove(one)
        assert error(filters, left) == pytest.approx(best, rel=1e-6, abs=1e-9)


@given(integers, st.booleans())
@settings(max_examples=60)
def test_omp_on_dependent_filters(filters, normalised):
    lengths = np.linalg.norm(filters, axis=1)
    selection = fp_omp(filters, normalised=normalised)
    check_path(filters, selection)
    rank = np.linalg.matrix_rank(filters)
    assert selection.rank == rank
    order = selection.order[0].tolist()
    for number in range(rank):
        alive = filters[lengths > 0]
        names = np.flatnonzero(lengths > 0).tolist()
        found = scores(alive, [names.index(one) for one in order[:number]], normalised)
        best = found[names.index(order[number])]
        assert best == pytest.approx(found.max(), rel=1e-6)
        # Ties go by the index.
        better = [names[place] for place in np.flatnonzero(found >= found.max() * (1 - 1e-12))]
        assert order[number] <= min(better)
    assert order[rank:] == sorted(order[rank:])


@given(full_rank, st.sampled_from([1e-3, 0.1, 1.0]))
@settings(max_examples=15)
def test_omp_with_a_ridge(filters, ridge):
    for normalised in (True, False):
        selection = fp_omp(filters, ridge=ridge, normalised=normalised)
        assert selection.order[0].tolist() == pursuit(filters, normalised, ridge)
        assert (selection.solver, selection.ridge) == ("ridge", ridge)
        check_ridge(filters, selection, ridge)


@given(full_rank, st.sampled_from([1e-3, 0.1, 1.0]))
@settings(max_examples=15)
def test_backward_with_a_ridge(filters, ridge):
    """A ridge is a feature of its own that every filter has, in proportion to its length."""
    lengths = np.linalg.norm(filters, axis=1)
    selection = fp_backward(filters, ridge=ridge)
    wide = np.hstack([filters, np.sqrt(ridge) * np.diag(lengths)])
    assert selection.order[0, ::-1].tolist() == greedy_removal(wide)
    check_ridge(filters, selection, ridge)


def check_ridge(filters, selection, ridge):
    squares = (filters**2).sum(axis=1)
    for count in range(len(filters) + 1):
        kept, gone = selection.kept(count), selection.removed(count)
        atoms = filters[kept]
        matrix = np.linalg.solve(atoms @ atoms.T + ridge * np.diag(squares[kept]), atoms @ filters[gone].T).T
        assert selection.compensation(count) == pytest.approx(
            matrix, rel=1e-7, abs=1e-9 * np.abs(matrix).max(initial=0)
        )
        objective = ((filters[gone] - matrix @ atoms) ** 2).sum() + ridge * (matrix**2 @ squares[kept]).sum()
        assert selection.errors[count] == pytest.approx(objective, rel=1e-7, abs=1e-10 * squares.sum())


# The closed form


def test_the_path_of_down_dates_is_the_path_of_inverses():
    """144 features, 64 filters, down to 20: as published, with a new inverse for every removal."""
    filters = np.random.default_rng(3).normal(size=(64, 144))
    selection = fp_backward(filters)
    left = list(range(64))
    for step in range(44):
        inverse = np.linalg.inv(filters[left] @ filters[left].T)
        shares = inverse @ filters[left] @ filters.T
        costs = (shares**2).sum(axis=1) / np.diag(inverse)
        if step == 0:
            assert costs == pytest.approx(1 / np.diag(inverse), rel=1e-10)
        worst = int(np.argmin(costs))
        rise = selection.errors[63 - step] - selection.errors[64 - step]
        assert rise == pytest.approx(costs[worst], rel=1e-8)
        left.pop(worst)
    assert selection.kept(20).tolist() == left
    expected = np.linalg.lstsq(filters[left].T, filters[selection.removed(20)].T, rcond=None)[0].T
    assert selection.compensation(20) == pytest.approx(expected, abs=1e-10)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=40)
def test_errors_as_something_reads_them(count, outputs, seed):
    """With targets W^T W, the error is what changes behind weights W that take up the compensation."""
    rng = np.random.default_rng(seed)
    signals, weights = rng.normal(size=(count, count + 5)), rng.normal(size=(outputs, count))
    selection = backward_on_gram(signals @ signals.T, weights.T @ weights)

    def change(kept):
        return float(((weights @ residual(signals, kept)) ** 2).sum())

    left = list(range(count))
    for number, one in enumerate(selection.order[0, ::-1].tolist()):
        best = min(change([other for other in left if other != out]) for out in left)
        left.remove(one)
        assert change(left) == pytest.approx(best, rel=1e-7, abs=1e-9)
        assert selection.errors[count - 1 - number] == pytest.approx(change(left), rel=1e-7, abs=1e-9)


# Ties, tables, and how least squares were solved


def test_ties_go_by_the_index():
    same = np.eye(5)
    assert fp_backward(same).order.tolist() == [[4, 3, 2, 1, 0]]  # 0 is the first to go
    assert fp_omp(same).order.tolist() == [[0, 1, 2, 3, 4]]  # and the first to be selected
    assert fp_backward(same).errors.tolist() == fp_omp(same).errors.tolist() == [5, 4, 3, 2, 1, 0]


def test_duplicates():
    filters = [[3.0, 4.0], [0.0, 1.0], [3.0, 4.0]]
    backward, omp = fp_backward(filters), fp_omp(filters)
    assert backward.kept(2).tolist() == [1, 2]
    assert omp.kept(2).tolist() == [0, 1]
    assert backward.compensation(2) == pytest.approx(np.array([[0.0, 1.0]]), abs=1e-12)
    assert omp.compensation(2) == pytest.approx(np.array([[1.0, 0.0]]), abs=1e-12)
    assert backward.errors == pytest.approx([51, 0.36, 0, 0])
    assert backward.relative_errors == pytest.approx([1, 0.36 / 51, 0, 0])


@BOTH
def test_coefficients_are_of_filters_as_they_are_in_the_order_of_the_layer(select):
    """The published code mixes both up; a filter that is half of another shows it."""
    filters = np.array([[0.5, 0, 0], [0, 0, 7.0], [0, 3.0, 0], [1.0, 0, 0]])
    selection = select(filters)
    kept = selection.kept(3).tolist()
    expected = {(1, 2, 3): [[0, 0, 0.5]], (0, 1, 2): [[2.0, 0, 0]]}[tuple(kept)]
    assert selection.compensation(3) == pytest.approx(np.array(expected), abs=1e-12)


@BOTH
def test_filters_of_zeros_go_first(select):
    filters = np.array([[1.0, 2.0], [0, 0], [2.0, 1.0]])
    selection = select(filters)
    assert selection.kept(2).tolist() == [0, 2]
    assert selection.compensation(2).tolist() == [[0.0, 0.0]]
    assert select(np.zeros((3, 4))).errors.tolist() == [0, 0, 0, 0]
    assert select(np.zeros((3, 4))).relative_errors.tolist() == [0, 0, 0, 0]
    assert select(np.zeros((3, 4))).rank == 0


@BOTH
def test_lengths_do_not_matter_to_the_condition(select):
    filters = random((6, 12), 1) * 10.0 ** np.array([[-12], [8], [0], [-20], [3], [-6]])
    assert select(filters).solver == "exact"


def test_how_the_gram_matrix_is_inverted():
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(12, 8)))[0].T
    mix = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for values, solver, rank in (
        ([1] * 8, "exact", 8),
        ([1] * 6 + [1e-4, 1e-4], "exact", 8),
        ([1] * 6 + [1e-9, 0], "pseudo-inverse", 6),
        ([1] * 6 + [10**-5.5, 10**-5.6], "ridge", 8),
    ):
        filters = mix @ np.diag(values) @ frame
        selection = fp_backward(filters)
        assert (selection.solver, selection.rank) == (solver, rank)
        if values[-1] == 1:
            continue
        assert selection.relative_errors[6] < 1e-7
        rest = filters[selection.removed(6)] - selection.compensation(6) @ filters[selection.kept(6)]
        assert np.abs(rest).max() < 1e-3
        assert (selection.ridge > 0) == (solver == "ridge")


def test_dependent_filters_keep_small_coefficients():
    """Of removals that cost nothing, not one that would be made of others by huge coefficients."""
    filters = np.array([[1.0, 0, 0], [1e-4, 1.0, 0], [1.0, 1e-5, 0], [0, 0, 1.0]])
    filters[2] = filters[0] + 1e-5 * filters[1]
    selection = fp_backward(filters)
    assert selection.removed(3).tolist()[0] in (0, 2)
    assert np.abs(selection.compensation(3)).max() < 1.1


# Sections


@BOTH
def test_sections_keep_equally_many_and_never_meet(select):
    filters = random((3, 5, 9), 4)
    together, alone = select(filters), [select(part) for part in filters]
    assert (together.sections, together.size, together.rank) == (3, 5, 15)
    assert together.errors == pytest.approx(sum(one.errors for one in alone))
    for count in range(6):
        assert together.kept(count).tolist() == [5 * n + k for n, one in enumerate(alone) for k in one.kept(count)]
        assert together.removed(count).tolist() == [
            5 * n + k for n, one in enumerate(alone) for k in one.removed(count)
        ]
        matrix = together.compensation(count).copy()
        for number, one in enumerate(alone):
            block = np.s_[number * (5 - count) : (number + 1) * (5 - count), number * count : (number + 1) * count]
            assert matrix[block].tolist() == one.compensation(count).tolist()
            matrix[block] = 0
        assert not matrix.any()


# Work


class Work(TorchDispatchMode):
    """Numbers that operations touch, and how often the costly ones are called."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.solves = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if func.overloadpacket.__name__ in ("mm", "bmm") or "linalg" in str(func) or "cholesky" in str(func):
            self.solves += "norm" not in str(func)
        self.numbers += max((t.numel() for t in tensors), default=0)
        return found


@BOTH
def test_a_path_costs_the_cube_of_the_filters(select):
    """Twice the filters: at most eight times the numbers, and as many products and factorisations."""
    counted = []
    for count in (32, 64):
        filters = torch.from_numpy(random((count, 100), 0))
        with Work() as work:
            select(filters)
        counted.append(work)
    assert counted[0].solves == counted[1].solves < 20
    assert counted[1].numbers < 8.5 * counted[0].numbers


# Bad input


@BOTH
def test_what_is_refused(select):
    with pytest.raises(InputError, match="not finite"):
        select([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="features"):
        select(np.zeros(4))
    with pytest.raises(ValueError, match="negative"):
        select(np.eye(2), ridge=-1.0)
    selection = select(np.eye(2))
    for call in (selection.kept, selection.removed, selection.compensation):
        with pytest.raises(ValueError, match="3 of 2"):
            call(3)
    with pytest.raises(ValueError, match="square"):
        backward_on_gram(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="one shape"):
        backward_on_gram(np.eye(2), np.eye(3))
