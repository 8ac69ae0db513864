"""Exercise 06: u-µP's row of Table 1.

Write `umup_row`. Graded by: pytest -m lesson06 lessons
Hints: python lessons/hint.py 06 1  (then 2, then 3)
"""


def umup_row(type: str, fan_in: int, fan_out: int, branches: int, in_branch: bool) -> tuple[float, float, float]:
    """√B, A and C of a weight: its initial standard deviation, its multiplier, its factor of the learning rate.

    type is "input" (an embedding), "hidden" or "output" (the readout). branches is the number of residual branches of
    the whole model, two a layer; in_branch says whether this weight lies in one.

    In slow and obvious loops: √B is 1 for all, so w and x have elements of size 1. What the weight puts out is

        input:            y = A * w[token]
        hidden, output:   y = 0
                          for i in range(fan_in):
                              y += A * w[i] * x[i]              # random signs: the sum is as large as √fan_in

    A lets a hidden y have size 1. At an input nothing is summed up. The readout is µP's and starts smaller: it is the
    mean of the w[i] * x[i]. One step of Adam at η = 1 changes each w[i] by C, with the sign of x[i], and so

        hidden, output:   change = 0
                          for i in range(fan_in):
                              change += A * C * abs(x[i])       # one sign: the sum is as large as fan_in

    C lets this change have size 1, whatever fan_in is. In a branch C is smaller, by the root of the number of branches.
    At an input C is the root of 1/fan_out (App. A.3).
    """
    raise NotImplementedError
