"""Lengths of files and functions in lines: median, 90th percentile, longest. See `./dev lengths`."""

import io
import pathlib
import re
import subprocess
import sys
import tarfile

AREAS = {"src": r"src/.*\.rs", "tests": r"tests/.*\.rs", "loadtest": r"loadtest/.*\.rs", "lua": r"lua/.*\.lua"}
BEGINS = re.compile(r"^( *)(?:pub(?:\([a-z]+\))? )?(?:const )?(?:async )?fn |^( *)local function ")


def files(commit):
    """Pairs of path and text: of the working tree, or of a commit."""
    if commit is None:
        names = subprocess.check_output(["git", "ls-files", *AREAS], text=True).split()
        yield from ((name, pathlib.Path(name).read_text()) for name in names if name.endswith((".rs", ".lua")))
        return
    archive = subprocess.check_output(["git", "archive", commit, *AREAS])
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        for member in tree:
            if member.isfile() and member.name.endswith((".rs", ".lua")):
                yield member.name, tree.extractfile(member).read().decode()


def functions(lines):
    """The code is formatted: a function ends at the first closing line with its own indent."""
    for at, line in enumerate(lines):
        begins = BEGINS.match(line)
        if not begins or line.endswith(";"):
            continue
        indent = begins.group(1) if begins.group(1) is not None else begins.group(2)
        if line.endswith("}") or line.endswith(" end"):
            yield 1
            continue
        for length, other in enumerate(lines[at + 1 :], 2):
            if other in (indent + "}", indent + "end"):
                yield length
                break
            if other == indent + ");" or other.startswith(indent + ") ->") and other.endswith(";"):
                break  # declared only


def row(name, lengths):
    lengths = sorted(lengths)
    middle, high = lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10]
    return f"| {name} | {len(lengths)} | {middle} | {high} | {lengths[-1]} |"


texts = list(files(sys.argv[1] if len(sys.argv) > 1 else None))
print("| | number | median | 90 % | longest |\n|---|---|---|---|---|")
for area, pattern in AREAS.items():
    found = [text.splitlines() for name, text in texts if re.fullmatch(pattern, name)]
    print(row(f"{area}: files", [len(lines) for lines in found]))
    print(row(f"{area}: functions", [length for lines in found for length in functions(lines)]))
