"""Exercise 06, solved."""


def umup_row(type: str, fan_in: int, fan_out: int, branches: int, in_branch: bool) -> tuple[float, float, float]:
    """√B, A and C of a weight: its initial standard deviation, its multiplier, its factor of the learning rate."""
    A, C = {
        "input": (1.0, fan_out**-0.5),
        "hidden": (fan_in**-0.5, fan_in**-0.5),
        "output": (1 / fan_in, 1.0),
    }[type]
    return 1.0, A, C * branches**-0.5 if in_branch else C
