"""The run.py of a bundle, put together from its three parts.

`run_head.py` and `run_tail.py` are the same for every runtime; between them stands the part of the
runtime's `session.py` after its line "# run.py: the session". Workers run the same code, imported
from these modules.
"""

import re
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent
TAIL = "# What follows is the same for every runtime.\n"


def program(name: str) -> bytes:
    """The run.py of every bundle of a runtime."""
    head, session = _text(FOLDER / "run_head.py"), _text(FOLDER / name / "session.py")
    title, remainder = session.removeprefix('"""').split('"""\n', 1)
    title = title.strip() + "\n"
    module_head, code = remainder.split("# run.py: the session\n")
    module_head, imports = module_head.split("# run.py: its runtime\n")
    module_head, before = module_head.split("# run.py: before its imports\n")
    before = f"{before.strip()}\n\n" if before.strip() else ""
    imports = imports.strip() + "\n"
    if imports.startswith("try:"):
        imports = "\n" + imports  # one of several packages, after NumPy
    code = code.strip() + "\n"
    gap = "\n\n" if code.startswith(("class ", "def ", "@")) else "\n"
    packages = re.findall(r"^PACKAGES = .*\n", module_head, re.MULTILINE)[0]
    head = head.split("\n", 1)[1].replace("@@title@@\n", title, 1)
    head = re.sub(r"PACKAGES: .*\n", lambda _: packages, head)
    head = head.replace("# run.py: before its imports\n", before)
    head = head.replace("    # run.py: its runtime\n", textwrap.indent(imports, "    "))
    shared, after = head.split("# run.py: its imports\n")
    standard, after = after.split("\n\n", 1)
    head = shared + _imports(standard, module_head) + "\n" + after
    tail = TAIL + _text(FOLDER / "run_tail.py").split(TAIL)[1]
    return (head + gap + code + "\n\n" + tail).encode()


def _imports(standard: str, module_head: str) -> str:
    """The standard library's modules that either names, in isort's order."""
    modules = set(re.findall(r"^import (\w+)$", standard, re.MULTILINE))
    modules |= set(re.findall(r"^import (\w+)$", module_head, re.MULTILINE))
    names: dict[str, set[str]] = {}
    for text in (standard, module_head):
        for module, listed in re.findall(r"^from ([a-z.]+) import (.*)$", text, re.MULTILINE):
            if not module.startswith("onmetal"):
                names.setdefault(module, set()).update(listed.split(", "))
    lines = [f"import {module}" for module in sorted(modules - {"numpy", "sys"})]
    lines += [
        f"from {module} import {', '.join(_sorted(members))}"
        for module, members in sorted(names.items())
    ]
    return "\n".join(lines) + "\n"


def _sorted(names: set[str]) -> list[str]:
    """Constants first, then classes, then functions."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def _text(path: Path) -> str:
    return path.read_text("utf-8")
