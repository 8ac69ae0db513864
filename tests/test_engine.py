"""The engine alone, on ops made here: it knows none of its own."""

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microumup.cpu import Threads
from microumup.engine import Tensor, backpropagate, primitive, using

add = primitive(lambda x, y: (x + y, None), lambda dy, saved: (dy, dy))
mul = primitive(lambda x, y: (x * y, (x, y)), lambda dy, saved: (dy * saved[1], dy * saved[0]))
power = primitive(lambda x, *, n: (x**n, (x, n)), lambda dy, saved: (dy * saved[1] * saved[0] ** (saved[1] - 1),))
relu = primitive(lambda x: (x * (x > 0), x > 0), lambda dy, saved: (dy * saved,))


def leaf(*values):
    return Tensor(np.array(values))


def scalar(value):
    return Tensor(np.array(float(value)))


def constant(value):
    return np.array(float(value))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def test_the_example_of_micrograds_readme():
    """karpathy/micrograd prints g = 24.7041, dg/da = 138.8338, dg/db = 645.5773."""
    a, b = scalar(-4), scalar(2)
    minus_a = mul(a, constant(-1))
    c = add(a, b)
    d = add(mul(a, b), power(b, n=3))
    c = add(c, add(c, constant(1)))
    c = add(c, add(add(constant(1), c), minus_a))
    d = add(d, add(mul(d, constant(2)), relu(add(b, a))))
    d = add(d, add(mul(constant(3), d), relu(add(b, minus_a))))
    e = add(c, mul(d, constant(-1)))
    f = power(e, n=2)
    g = add(mul(f, constant(0.5)), mul(constant(10), power(f, n=-1)))
    backpropagate(g)
    assert f"{g.data:.4f}, {a.grad:.4f}, {b.grad:.4f}" == "24.7041, 138.8338, 645.5773"


def test_an_input_used_twice_by_one_op_gets_both_gradients():
    x = scalar(3)
    backpropagate(add(x, x))
    assert x.grad == 2


def test_a_diamond_adds_up_its_two_ways():
    x = scalar(3)
    backpropagate(mul(power(x, n=2), power(x, n=3)))
    assert x.grad == 5 * 3**4


def test_an_op_waits_for_the_gradients_of_all_its_uses():
    """x² is used by the youngest op and by an old one: walked in the wrong order, a part would be lost."""
    x = scalar(3)
    square = power(x, n=2)
    deep = power(power(square, n=2), n=2)
    backpropagate(add(deep, square))
    assert x.grad == 8 * 3**7 + 2 * 3


def test_60_diamonds_are_not_walked_in_all_their_ways():
    x = y = scalar(1)
    for _ in range(60):
        y = add(y, y)
    backpropagate(y)
    assert x.grad == 2**60


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8))
def test_any_graph_of_sums_and_products_has_the_gradient_of_a_complex_step(graph):
    def last(inputs):
        values = list(inputs)
        for is_sum, i, j in graph:
            values.append((add if is_sum else mul)(values[i % len(values)], values[j % len(values)]))
        return values[-1]

    at = np.array([0.7123, -0.4321])
    x = [scalar(value) for value in at]
    y = last(x)
    backpropagate(y)
    for i, tensor in enumerate(x):
        # f(x + ih) has the imaginary part h f'(x), and no difference of close numbers is taken: exact but for rounding
        true = last([Tensor(a) for a in at + 1e-30j * np.eye(2)[i]]).data.imag / 1e-30
        assert np.isclose(0.0 if tensor.grad is None else tensor.grad, true, rtol=1e-10, atol=1e-12)


def test_gradients_of_two_tapes_add_up():
    x = scalar(3)
    backpropagate(power(x, n=2))
    backpropagate(power(x, n=2))
    assert x.grad == 12


def test_a_chain_of_10000_ops_needs_no_recursion():
    x = y = scalar(1)
    for _ in range(10_000):
        y = add(y, constant(1))
    backpropagate(y)
    assert x.grad == 1


# ---------------------------------------------------------------------------------------------------------------------
# Which buffers are written to


def test_the_first_gradient_is_stored_and_not_copied():
    x, dy = leaf(1.0, 2.0), np.ones(2)
    backpropagate(add(x, np.zeros(2)), dy)
    assert x.grad is dy


def test_a_shared_gradient_is_never_written_to():
    """add passes the same dy on to both inputs: what a gets beyond it must not show in b, nor in the caller's dy."""
    a, b, dy = leaf(1.0), leaf(1.0), np.ones(1)
    backpropagate(add(add(add(a, b), a), a), dy)
    assert (a.grad, b.grad, dy) == (3, 1, 1)


def test_that_test_catches_an_engine_that_adds_in_place(monkeypatch):
    def accumulate(self, grad):
        if self.grad is None:
            self.grad = grad
        else:
            self.grad += grad

    monkeypatch.setattr(Tensor, "accumulate", accumulate)
    with pytest.raises(AssertionError):
        test_a_shared_gradient_is_never_written_to()


def test_no_gradient_is_added_to_in_place():
    x, gradients, sums = leaf(0.0), [np.ones(1), np.ones(1), np.ones(1)], []
    for gradient in gradients:
        x.accumulate(gradient)
        sums.append(x.grad)
    assert gradients == [1, 1, 1]
    assert sums == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Constants


def test_what_is_made_of_arrays_is_a_constant_without_a_tape():
    y = mul(mul(np.ones(2), np.ones(2)), np.ones(2))
    assert y.constant
    assert (y.inputs, y.saved) == ((), None)


def test_a_constant_gets_no_gradient():
    x, half = scalar(3), Tensor(np.array(0.5), constant=True)
    quarter = mul(half, half)
    backpropagate(mul(mul(quarter, x), half))
    assert x.grad == 0.125
    assert (half.grad, quarter.grad) == (None, None)


def test_the_gradient_an_op_has_for_an_array_is_ignored():
    ids = np.array([0, 2])
    take = primitive(lambda ids, w: (w[ids], None), lambda dy, saved: (None, np.ones(3)))
    w = leaf(1.0, 2.0, 3.0)
    backpropagate(take(ids, w), np.ones(2))
    assert np.array_equal(w.grad, np.ones(3))


def test_a_constant_has_no_gradient_to_walk_to():
    with pytest.raises(ValueError, match="backpropagate: y was made from arrays alone"):
        backpropagate(mul(np.ones(()), np.ones(())))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ((np.ones(2),), "scale_rows: backward returned 1 gradients for 2 inputs"),
        ((np.ones(2),) * 3, "scale_rows: backward returned 3 gradients for 2 inputs"),
        ((np.ones(2), np.ones(1)), r"gradient of input 1 is float64 \(1,\), the input is float64 \(2,\)"),
        ((None, np.ones(2)), r"scale_rows: the gradient of input 0 is None, the input is float64 \(2,\)"),
        ((np.ones(2), np.ones(2, np.float32)), r"gradient of input 1 is float32 \(2,\), the input is float64 \(2,\)"),
    ],
)
def test_gradients_of_the_wrong_number_shape_or_dtype_name_the_op(gradients, message):
    def scale_rows_forward(x, y):
        return x * y, None

    scale_rows = primitive(scale_rows_forward, lambda dy, saved: gradients)
    with pytest.raises(ValueError, match=message):
        backpropagate(scale_rows(leaf(1.0, 2.0), leaf(1.0, 2.0)), np.ones(2))


def test_a_tape_is_walked_once():
    y = power(scalar(3), n=2)
    backpropagate(y)
    with pytest.raises(ValueError, match="was walked before; run the forward pass again"):
        backpropagate(y)


def test_a_tape_is_walked_once_also_from_elsewhere():
    shared = power(scalar(3), n=2)
    first, second = power(shared, n=2), power(shared, n=3)
    backpropagate(first)
    with pytest.raises(ValueError, match="was walked before"):
        backpropagate(second)


def test_a_y_that_is_no_scalar_needs_a_cotangent():
    with pytest.raises(ValueError, match=r"y has shape \(2,\), not \(\); pass cotangent="):
        backpropagate(relu(leaf(1.0, 2.0)))


def test_the_cotangent_has_the_shape_of_y():
    with pytest.raises(ValueError, match=r"backpropagate: the cotangent .*\(\), y .*\(2,\)"):
        backpropagate(relu(leaf(1.0, 2.0)), np.ones(()))


def test_the_cotangent_has_the_dtype_of_y():
    """Or every gradient would be float64 behind a float32 model, and no one would say so."""
    with pytest.raises(ValueError, match=r"backpropagate: the cotangent .*float64.*, y .*float32"):
        backpropagate(relu(Tensor(np.ones(2, dtype=np.float32))), np.ones(2))


# ---------------------------------------------------------------------------------------------------------------------
# Cotangent, what is kept, names


def test_the_cotangent_is_what_dy_starts_as():
    x = leaf(1.0, 2.0)
    backpropagate(power(x, n=2), np.array([10.0, 100.0]))
    assert np.array_equal(x.grad, [20.0, 400.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_a_scalar_has_its_dtype(dtype):
    x = Tensor(np.array(3, dtype=dtype))
    backpropagate(power(x, n=2))
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_and_saved_arrays_stay_only_when_kept(keep):
    x = scalar(3)
    square = power(x, n=2)
    backpropagate(mul(square, square), keep=keep)
    assert x.grad == 4 * 3**3
    assert square.grad == (18 if keep else None)
    assert (square.saved is not None) == keep
    assert bool(square.inputs) == keep


def test_saved_arrays_are_let_go_while_walking():
    """When the older op's backward runs, what the younger one had saved is gone: at the end is too late for memory."""
    saved_by_younger, alive = [], []

    def younger(x):
        array = np.ones(3)
        saved_by_younger.append(weakref.ref(array))
        return x, array

    def older_backward(dy, saved):
        alive.append(saved_by_younger[0]() is not None)
        return (dy,)

    older = primitive(lambda x: (x, None), older_backward)
    y = primitive(younger, lambda dy, saved: (dy,))(older(scalar(1)))
    backpropagate(y)
    assert alive == [False]


def test_gradients_of_op_outputs_are_let_go_while_walking():
    gradients, alive = [], []

    def middle_backward(dy, saved):
        gradients.append(weakref.ref(dy))
        return (dy + 1,)

    def oldest_backward(dy, saved):
        alive.append(gradients[0]() is not None)
        return (dy,)

    oldest = primitive(lambda x: (x, None), oldest_backward)
    middle = primitive(lambda x: (x, None), middle_backward)
    backpropagate(mul(middle(oldest(leaf(1.0, 2.0))), np.ones(2)), np.ones(2))
    assert alive == [False]


def double_forward(x):
    """Twice x."""
    return 2 * x, None


double = primitive(double_forward, lambda dy, saved: (2 * dy,))


def test_an_op_is_named_after_its_forward():
    assert double.__name__ == double(scalar(1)).op == "double"
    assert double.__doc__.startswith("Twice x.")


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (Tensor(np.ones((2, 3)), "head"), "Tensor(head, (2, 3), float64)"),
        (leaf(1.0), "Tensor(leaf, (1,), float64)"),
        (Tensor(np.ones(1), constant=True), "Tensor(constant, (1,), float64)"),
        (double(leaf(1.0)), "Tensor(double, (1,), float64)"),
    ],
)
def test_a_tensor_says_what_it_is(tensor, text):
    assert repr(tensor) == text


def test_a_tensor_knows_the_settings_of_its_op():
    x = scalar(3)
    y = power(x, n=2)
    assert y.settings == {"n": 2}
    assert (x.settings, mul(x, x).settings) == ({}, {})
    assert power(np.ones(2), n=2).settings == {}  # a constant keeps nothing


# ---------------------------------------------------------------------------------------------------------------------
# Other pairs for an op

TENFOLD_SUM = {add: (lambda x, y: (10 * (x + y), None), lambda dy, saved: (10 * dy, 10 * dy))}
TENFOLD_PRODUCT = {mul: (lambda x, y: (10 * x * y, (x, y)), lambda dy, saved: (10 * dy * saved[1], 10 * dy * saved[0]))}


def sum_and_product():
    return float(add(constant(2), constant(3)).data), float(mul(constant(2), constant(3)).data)


def test_using_runs_another_pair_within_and_not_outside():
    assert sum_and_product() == (5, 6)
    with using(TENFOLD_SUM):
        assert sum_and_product() == (50, 6)
    assert sum_and_product() == (5, 6)


def test_an_op_is_differentiated_by_the_pair_that_it_ran_by():
    x, y = scalar(2), scalar(3)
    with using(TENFOLD_PRODUCT):
        out = mul(x, y)
    backpropagate(out)  # outside of it
    assert (x.grad, y.grad) == (30, 20)
    out = mul(x, y)
    with using(TENFOLD_PRODUCT):
        backpropagate(out)
    assert (x.grad, y.grad) == (30 + 3, 20 + 2)


def test_the_inner_of_two_adds_to_the_outer_and_overrides_it():
    hundredfold = {add: (lambda x, y: (100 * (x + y), None), lambda dy, saved: (dy, dy))}
    with using(TENFOLD_SUM):
        with using(TENFOLD_PRODUCT):
            assert sum_and_product() == (50, 60)
        assert sum_and_product() == (50, 6)
        with using(hundredfold):
            assert sum_and_product() == (500, 6)
        with using({}):
            assert sum_and_product() == (50, 6)
        assert sum_and_product() == (50, 6)


def test_other_pairs_go_along_into_the_threads_of_a_caller():
    threads = Threads(3)
    with using(TENFOLD_SUM):
        assert threads.run(lambda i: sum_and_product()) == [(50, 6)] * 3
    assert threads.run(lambda i: sum_and_product()) == [(5, 6)] * 3


def test_pairs_that_one_thread_uses_are_not_those_of_another():
    def work(i):
        with using(TENFOLD_SUM) if i == 1 else using(TENFOLD_PRODUCT):
            return [sum_and_product() for _ in range(100)]

    assert Threads(2).run(work) == [[(5, 60)] * 100, [(50, 6)] * 100]


def test_an_exception_within_puts_the_own_pairs_back():
    with pytest.raises(ZeroDivisionError), using(TENFOLD_SUM):
        raise ZeroDivisionError
    assert sum_and_product() == (5, 6)


def test_the_kernels_that_are_passed_are_never_written_to():
    kernels = dict(TENFOLD_SUM)
    with using(kernels), using(TENFOLD_PRODUCT):
        pass
    assert kernels == TENFOLD_SUM
