"""Exercise 10: rounding to E4M3.

Write `to_e4m3`. Graded by: pytest -m lesson10 lessons
Hints: python lessons/hint.py 10 1  (then 2, then 3)
"""

from microumup.backend import Array


def to_e4m3(x: Array) -> Array:
    """The numbers of E4M3 nearest to x, float32 of any shape; the result is float32 of the same shape.

    E4M3 has 3 bits of mantissa, normal numbers from 2^-6 on, subnormal ones below, and 448 as its largest. What lies
    past ±448, infinity too, becomes ±448. The sign of a zero is kept, also where a small number becomes zero. There is
    no NaN in x. Write to no array that you are given; np.frexp, np.floor and np.rint may be of use, ml_dtypes and
    `microumup.fp8.quantize` not.

    In slow and obvious loops:

        for every element x:
            if |x| > 448:
                x = 448, with the sign of x
            e = the largest whole number with 2^e <= |x|, but never less than -6
            step = 2^(e - 3)                                # the distance of neighbours around x
            n = the whole number nearest to x / step        # of two that are as near, the even one
            y = n * step
    """
    raise NotImplementedError
