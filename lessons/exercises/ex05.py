"""Exercise 05: the multipliers of every residual branch.

Write `branch_multipliers`. Graded by: pytest -m lesson05 lessons
Hints: python lessons/hint.py 05 1  (then 2, then 3)
"""


def branch_multipliers(branches: int, alpha_res: float, alpha_res_attn_ratio: float) -> list[tuple[float, float]]:
    """(a, b) of every branch, for R' = a f(R) + b R: a network whose trunk keeps scale 1.

    branches is L, an even number; the first branch is attention, the second FFN, and so on in turn. alpha_res is the
    scale of all branches together over that of the embedding, alpha_res_attn_ratio that of all attention branches over
    that of all FFN branches.

    Start from the plain network R' = r_l f(R) + R, with r_0 = 1 for the embedding:

        ffn = alpha_res * root of (2 / (alpha_res_attn_ratio squared + 1))       eq. (24)
        attention = alpha_res_attn_ratio * ffn                                   eq. (23)
        r_l = attention / root of L for l = 1, 3, 5, ... and ffn / root of L for l = 2, 4, 6, ...

    In slow and obvious loops, for every branch l = 1 ... L:

        before = 0
        for i = 0 ... l - 1:                        # the embedding and the branches before this one
            before = before + r_i squared
        a_l and b_l are positive, with              a_l squared / b_l squared = r_l squared / before     eq. (12)
                                                    a_l squared + b_l squared = 1
    """
    raise NotImplementedError
