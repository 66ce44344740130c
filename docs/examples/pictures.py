"""Make the pictures of the README and the pages, and write down what they show.

Run it from the root of the repository, with the extra ``dev`` and Chromium (Debian: chromium, chromium-driver):

    python docs/examples/pictures.py                       # all of them: some minutes on 2 cores
    python docs/examples/pictures.py --only=report --reuse # of the page that `experiments.quickstart` wrote last

Beside each picture of a page is a record, such as docs/report.json: the texts in the picture, the names in them, and
digests of the picture and of the layout of its page. Alternative texts in the pages are made of these texts. The tests
in `tests/test_pictures.py` read the records. They fail when the layout of the page has changed, or when a text of a
picture is no longer one that the program can write.
"""

import argparse
import ast
import hashlib
import json
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REPORT = ROOT / "ensdiff" / "report"


class Picture(NamedTuple):
    """A picture of a page.

    Args:
        page: the page, in the folder in which the commands run.
        commands: programs and their flags, which write the page.
        size: width and height of the window.
        layout: the files that determine the layout of the page.
        alt: the beginning of its alternative text; what follows are the first sentences of ``headlines``.
        headlines: CSS selectors of texts.
        shown: the pages of the documentation that show it.
        names: names in the picture that its page does not mark as names.
    """

    page: str
    commands: Sequence[Sequence[str]]
    size: tuple[int, int]
    layout: Sequence[pathlib.Path]
    alt: str
    headlines: Sequence[str]
    shown: Sequence[str]
    names: Sequence[str] = ()


CLASSES = "runs/pictures"
PICTURES = {
    "report": Picture(
        "runs/quickstart/report.html",
        [["experiments.quickstart"]],
        (1150, 950),
        [REPORT / "page.html.jinja"],
        "The report",
        ["h1", ".finding"],
        ["README.md", "docs/index.md"],
    ),
    "explorer": Picture(
        f"{CLASSES}/report/explorer.html",
        [
            ["experiments.train", "--config=digits", "--config.data.groups=class", "--config.train.steps=400",
             f"--config.run_dir={CLASSES}"],
            ["experiments.report", CLASSES],
        ],
        (1100, 1330),
        [REPORT / "explorer" / "explorer.html.jinja", REPORT / "explorer" / "explorer.css"],
        "The explorer",
        ["h1", "#sample-title", "#verdict"],
        ["docs/using.md"],
        ["digits"],
    ),
}  # fmt: skip

WORDS = (
    "ensdiff/report/**/*.py", "ensdiff/report/**/*.jinja", "ensdiff/report/**/*.js",
    "ensdiff/attribution/*.py", "experiments/pages.py", "experiments/quickstart.py",
    "experiments/report.py",
)  # fmt: skip
"""The files that the texts of the pages come from."""

MARKS = " .,;:()[]-+±×/%★·↔↓↑✕"
"""What may stand between the parts of a text."""
TEXTS = """
const shown = (node) => {
  const box = node.getBoundingClientRect();
  return node.checkVisibility() && box.width > 0 && box.top >= 0 && box.bottom <= window.innerHeight;
};
const texts = (css, keep) => [...document.querySelectorAll(css)].filter(keep).map((node) => node.innerText.trim());
return {
  says: texts("h1, h2, h3, p:not(.extra), figcaption, thead th, legend, caption, strong", shown).filter((text) => text),
  names: texts(".name, .pick, .chips li, .word span", () => true).filter((text) => text),
  headlines: arguments[0].flatMap((css) => texts(css, shown).slice(0, 1)),
};
"""


def layout_digest(files: Iterable[pathlib.Path]) -> str:
    """Return the SHA-256 of files without regard to white space."""
    return hashlib.sha256("\n".join(" ".join(file.read_text().split()) for file in files).encode()).hexdigest()


def _constants(text: str, suffix: str) -> Iterable[str]:
    """Yield the texts of a source file: its strings, or those parts of them that are always the same."""
    if suffix == ".py":
        tree = ast.parse(text)
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                yield node.value
    elif suffix == ".js":
        for found in re.finditer(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`', text):
            yield from re.split(r"\$\{[^}]*\}|\\n", found[1] or found[2] or "")
    else:
        yield from re.split(r"<[^>]*>|\{\{.*?\}\}|\{%.*?%\}", text, flags=re.DOTALL)
        for inserted in re.findall(r"\{\{.*?\}\}|\{%.*?%\}", text, flags=re.DOTALL):
            yield from re.findall(r'"([^"]*)"', inserted)


def _parts(text: str) -> list[str]:
    """Return the parts of a text between numbers and masked names, in small letters and without marks at their ends."""
    parts = re.split(r"[\0\d]+(?:[.,:]\d+)*", re.sub(r"\s+", " ", text).casefold())
    return [part for part in (part.strip(MARKS) for part in parts) if part]


def program_words(root: pathlib.Path = ROOT) -> frozenset[str]:
    """Return the texts that the program can write, as far as they are always the same."""
    files = {file for pattern in WORDS for file in root.glob(pattern)}
    found = (text for file in sorted(files) for text in _constants(file.read_text(), file.suffix))
    return frozenset(part for text in found for piece in re.split(r"\{\w*\}", text) for part in _parts(piece))


def unknown(text: str, names: Sequence[str], words: frozenset[str]) -> list[str]:
    """Return the parts of a text that are neither names, nor numbers, nor put together from texts of the program.

    >>> words = frozenset({"verdict", "unattributable at level"})
    >>> unknown("Verdict: unattributable at level 0.1", [], words)
    []
    >>> unknown("Verdict: traced to ada at level 0.1", ["ada"], words)
    ['traced to', 'at level']
    """
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "\0", text)
    missing = []
    for part in _parts(text):
        ends = [0]  # where a row of texts of the program can end: between words, or before the s of a plural
        for end in (found.end() for found in re.finditer(r"\b|(?=s\b)|$", part)):
            if any(not (piece := part[start:end].strip(MARKS)) or piece in words for start in ends):
                ends.append(end)
        if ends[-1] < len(part):
            missing.append(part[ends[-1] :].strip(MARKS))
    return missing


def alternative(picture: Picture, headlines: Sequence[str]) -> str:
    """Return the alternative text of a picture."""
    return f"{picture.alt}: " + " ".join(f"{text.partition('. ')[0].rstrip('.')}." for text in headlines)


def photograph(page: pathlib.Path, picture: Picture, target: pathlib.Path) -> dict:
    """Write a picture of the top of a page, and return its record."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    browser, server = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not server:
        raise SystemExit("no headless browser: install chromium and chromedriver (Debian: chromium chromium-driver)")
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(server))
    try:
        width, height = picture.size
        driver.set_window_size(width, height)
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        driver.get(page.resolve().as_uri())
        found = driver.execute_script(TEXTS, list(picture.headlines))
        driver.save_screenshot(str(target))
    finally:
        driver.quit()
    return {
        "command": " && ".join(f"python -m {' '.join(command)}" for command in picture.commands),
        "alt": alternative(picture, found["headlines"]),
        "says": found["says"],
        "names": sorted({*found["names"], *picture.names}),
        "layout": layout_digest(picture.layout),
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
    }


def set_alternative(name: str, alt: str, pages: Sequence[str]) -> None:
    """Write the alternative text of a picture into the pages that show it."""
    for page in pages:
        path = ROOT / page
        text, count = re.subn(
            rf"!\[[^\]]*\]\(((?:docs/)?{name}\.png)\)", lambda m: f"![{alt}]({m[1]})", path.read_text()
        )
        if not count:
            raise SystemExit(f"{page} does not show {name}.png")
        path.write_text(text)


def main() -> None:
    """Run the programs, take the pictures, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join([*PICTURES, "ordering"]), help="Pictures, separated by commas.")
    parser.add_argument("--reuse", action="store_true", help="Take pages that are there instead of making them.")
    asked = parser.parse_args()
    for name in asked.only.split(","):
        if name == "ordering":
            runpy.run_path(str(ROOT / "docs" / "examples" / "ordering.py"), run_name="__main__")
            continue
        picture = PICTURES[name]
        for command in () if asked.reuse else picture.commands:
            subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
        if not (ROOT / picture.page).exists():
            raise SystemExit(f"{picture.page} is missing: leave out --reuse, which takes pages that are there")
        record = photograph(ROOT / picture.page, picture, ROOT / "docs" / f"{name}.png")
        (ROOT / "docs" / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        set_alternative(name, record["alt"], picture.shown)
        strange = {text: parts for text in record["says"] if (parts := unknown(text, record["names"], program_words()))}
        print(f"docs/{name}.png: {record['alt']}")
        for text, parts in strange.items():
            print(f"  not a text of the program: {parts} in {text!r}")


if __name__ == "__main__":
    main()
