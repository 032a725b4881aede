"""Commands that the documents show and the tests run, as tests/src/fences.rs finds them for the tests in Rust."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def fence(name):
    """The block that opens with "```sh test=NAME", wherever it stands."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/src/*.md"), *ROOT.glob("examples/*/README.md")]
    pattern = rf"^```sh test={re.escape(name)}\n(.*?)^```$"
    found = [
        commands
        for page in pages
        for commands in re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    ]
    assert len(found) == 1, f"{len(found)} fences `test={name}` in the documents"
    return found[0]
