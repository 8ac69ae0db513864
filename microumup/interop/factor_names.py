"""Names of factors: which powers of fan_in, b, V, … make the number that somebody multiplied by."""

from itertools import combinations
from math import isclose


def name_factor(found: float, right: float, name: str, values: dict[str, float], tolerance: float = 1e-5) -> list[str]:
    """Words for a factor that is `found` where `right`, called `name`, should be: made of powers of `values`."""

    def is_(value: float) -> bool:
        return isclose(found, value, rel_tol=tolerance)

    if is_(-right):
        return ["the sign is wrong"]
    roots = {"{}": 1.0, "√{}": 0.5}
    known = {shape.format(key): v**p for shape, p in roots.items() for key, v in values.items()}
    words = []
    words += [f"the factor {name} is missing"] * (name != "1" and is_(1.0))
    for key, value in known.items() if name != "1" else ():
        words += [f"the factor is {key}, not {name}"] * (is_(value) and key != name)
        words += [f"the factor is {_inverse(key)}, not {name}"] * (is_(1 / value) and _inverse(key) != name)
    words += [f"the factor {name} is inverted"] * (name != "1" and is_(1 / right))
    words += [f"the factor {name} is there twice"] * (name != "1" and is_(right**2))
    for key, value in known.items():
        words += [f"a factor {key} too much"] * is_(right * value) + [f"a factor {key} is missing"] * is_(right / value)
    if not words:
        for (one, v), (two, u) in combinations(known.items(), 2):
            words += [f"factors {one} and {two} too much"] * is_(right * v * u)
            words += [f"factors {one} and {two} are missing"] * is_(right / v / u)
            words += [f"a factor {one} too much and {two} missing"] * is_(right * v / u)
            words += [f"a factor {two} too much and {one} missing"] * is_(right * u / v)
    return list(dict.fromkeys(words))


def _inverse(key: str) -> str:
    return f"{key[1:]}^-1/2" if key.startswith("√") else f"1/{key}"
