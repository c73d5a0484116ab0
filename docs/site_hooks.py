"""What the site adds to the pages of docs/: pages from elsewhere, the reference, links, and formulas.

The pages are written to be read in the repository; here their links are turned into the site's.
"""

import html
import os
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sparseirm"
ELSEWHERE = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE"]

LINK = re.compile(r"(\]\()((?!https?:|#|mailto:)[^)#\s]+)")
WHOLE_LINK = re.compile(r"\[([^][]+)\]\(((?!https?:|#|mailto:)[^)#\s]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
TEX = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
SPAN = re.compile(r"<code>([^<]*)</code>")
PROMPT = re.compile(r"^( *)(>>> .*(?:\n(?! *$).+)*)", re.MULTILINE)


class Examples(griffe.Extension):
    """Shows what stands behind prompts in docstrings as code, wherever it stands."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring:
            obj.docstring.value = PROMPT.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)


def on_files(files: Any, config: Any) -> Any:
    """Add pages from elsewhere, what they link to, and the reference; all pages go into the navigation."""
    queue = [ROOT / name for name in ELSEWHERE]
    for path in queue:
        files.append(File.generated(config, _uri(path), abs_src_path=str(path)))
    queue += sorted((ROOT / "docs").glob("*.md"))
    for page in queue:
        for target in _linked(page):
            if files.get_file_from_path(_uri(target)) is None:
                files.append(File.generated(config, _uri(target), abs_src_path=str(target)))
                queue.append(target)
    sections = {title: pages for section in config.nav for title, pages in section.items()}
    modules = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    for name in sorted(modules - {"__init__.py"}):
        uri = f"reference/{Path(name).stem}.md"
        files.append(File.generated(config, uri, content=_reference(PACKAGE / name)))
        sections["Reference"].append(uri)
    named = {page for pages in sections.values() for page in pages}
    sections["How to"] += sorted(f.src_uri for f in files.documentation_pages() if f.src_uri not in named)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the repository's links into the site's, and formulas between dollars into MathML."""
    here = page.file.src_uri
    folder = _source(here).parent

    def text_of_folders(found: re.Match[str]) -> str:
        return found[1] if (folder / found[2]).is_dir() else found[0]

    def on_the_site(found: re.Match[str]) -> str:
        uri = _uri(folder / found[2])
        there = os.path.relpath(uri, os.path.dirname(here) or ".")
        return found[1] + (there if files.get_file_from_path(uri) else found[2])

    page.meta["formulas"] = formulas = []

    def formula(found: re.Match[str]) -> str:
        formulas.append(convert(found[1] or found[2], display="block" if found[1] else "inline"))
        return f"@@{len(formulas) - 1}@@"

    linked = LINK.sub(on_the_site, WHOLE_LINK.sub(text_of_folders, markdown))
    pieces = CODE.split(linked)
    return "".join(piece if at % 2 else TEX.sub(formula, piece) for at, piece in enumerate(pieces))


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Put the formulas in, and set those of the docstrings as such."""
    if page.file.src_uri.startswith("reference/"):
        content = SPAN.sub(lambda found: _typeset(html.unescape(found[1])) or found[0], content)
    return re.sub(r"@@(\d+)@@", lambda found: page.meta["formulas"][int(found[1])], content)


def _linked(page: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    if page.suffix != ".md":
        return []
    targets = [Path(os.path.normpath(page.parent / found[2])) for found in LINK.finditer(page.read_text())]
    return [target for target in targets if target.is_file() and target.is_relative_to(ROOT)]


def _uri(path: Path) -> str:
    """Where a file of the repository is on the site."""
    inside = Path(os.path.relpath(path, ROOT)).as_posix()
    return "index.md" if inside == "README.md" else inside.removeprefix("docs/")


def _source(uri: str) -> Path:
    """Where a page of the site is in the repository."""
    inside = ROOT / "docs" / uri
    return inside if inside.exists() else ROOT / ("README.md" if uri == "index.md" else uri)


def _reference(path: Path) -> str:
    """A page that describes a module, or all modules of a folder."""
    modules = [path] if path.is_file() else sorted(path.rglob("*.py"))
    names = [".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts) for module in modules]
    names = [name.removesuffix(".__init__") for name in names]
    return f"# {path.stem}\n\n" + "".join(f"::: {name}\n\n" for name in names)


WORDS = {
    **{name: rf"\{name} " for name in ("lambda", "sum", "tau", "sqrt", "ln", "exp", "log", "max", "min")},
    **{name: rf"\{name} " for name in ("delta", "beta", "gamma", "alpha")},
    **{"inf": r"\infty ", "eps": r"\varepsilon ", "o": r"\circ "},
}
TOKENS = re.compile(
    r"(?P<power>\*\*(?:\((?P<group>[^()]*)\)|(?P<single>-?\w+)))|(?P<sub>_(?P<index>\w+))|(?P<word>[A-Za-z]+)"
    r"|(?P<sign><=|>=|->|!=|\*|~|'|%|&|\||<|>)|(?P<rest>.)",
    re.DOTALL,
)
SIGNS = {"<=": r"\le ", ">=": r"\ge ", "->": r"\to ", "!=": r"\ne ", "*": r"\cdot ", "~": r"\sim ", "'": "'"}
SIGNS |= {"%": r"\% ", "&": r"\& ", "|": "|", "<": "<", ">": ">"}


def _typeset(text: str) -> str | None:
    """A formula of a docstring as MathML, or None for what is code."""
    if not re.search(r"[\w)]\*\*|\bsum_|\w_e\b| ~ |\bd/d|dL/d|^J = ", text) or re.search(
        r"[\"\[\]{}]|\w\.\w|::|__", text
    ):
        return None
    return convert("".join(_tex(found) for found in TOKENS.finditer(text)))


def _tex(found: re.Match[str]) -> str:
    if found["power"]:
        return f"^{{{found['group'] or found['single']}}}"
    if found["sub"]:
        return f"_{{{found['index']}}}"
    if found["word"]:
        word = found["word"]
        return WORDS.get(word) or (word if len(word) == 1 else rf"\mathrm{{{word}}}")
    return SIGNS[found["sign"]] if found["sign"] else found["rest"].replace(" ", r"\ ")
