"""Hints for an exercise: python lessons/hint.py 02 1, then 2, then 3. Each goes a step further."""

import re
import sys
from pathlib import Path

HINTS = Path(__file__).resolve().parent / "exercises" / "hints"


def hints(path: Path) -> list[str]:
    """The sections of a file of hints, in their order, without their headings `# 1`, `# 2`, `# 3`."""
    return [part.strip() for part in re.split(r"^# [123]\s*$", path.read_text("utf-8"), flags=re.MULTILINE)[1:]]


def main(argv: list[str]) -> int:
    """0 when there is such a hint, 2 when not."""
    numbers = sorted(path.stem for path in HINTS.glob("*.md"))
    usage = f"usage: python lessons/hint.py NN 1|2|3, where NN is one of {', '.join(numbers)}"
    if argv in (["-h"], ["--help"]):
        print(usage)
        return 0
    if len(argv) != 2 or argv[0].zfill(2) not in numbers or argv[1] not in ("1", "2", "3"):
        print(usage, file=sys.stderr)
        return 2
    number, which = argv[0].zfill(2), int(argv[1])
    print(hints(HINTS / f"{number}.md")[which - 1])
    if which < 3:
        print(f"\nOne step further: python lessons/hint.py {number} {which + 1}")
    else:
        print(f"\nThe answer itself: lessons/solutions/ex{number}.py")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
