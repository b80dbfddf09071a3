"""What .ci/mkdocs.yml needs besides: the order of the pages, a page for each module, links that stay
inside, and formulas as MathML, which a browser draws without any script.

Notebooks and modules are found, not listed; `READ` and `TASKS` are the two choices a person made.
"""
import html as entities
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"
READ = ["00_core", "11_losses", "24_exits", "30_method", "methods/mate", "42_training", "50_inference",
        "papers/mate"]
FLOORS = ["Values, text, files", "Data", "Networks", "Methods", "Training, runs, sweeps", "Analyses", "Labs",
          "Papers and studies"]


def title(path: Path) -> str:
    "The first heading of a notebook, as plain text."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return first.splitlines()[0].lstrip("# ").strip()


def pages(pattern: str) -> list[dict]:
    "Title and file of the notebooks that match."
    found = [p for p in sorted(NBS.glob(pattern)) if p.name != "index.ipynb"]
    return [{title(p): p.relative_to(NBS).as_posix()} for p in found]


def modules() -> list[str]:
    found = sorted((ROOT/"multiexit_nb").rglob("*.py"))
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in found)
    return [name for name in names if not name.endswith("_modidx")]


def on_config(config):
    "The order of the pages."
    read = [{title(NBS/f"{name}.ipynb"): f"{name}.ipynb"} for name in READ]
    floors = [{f"{i} {name}": pages(f"{i}[0-9]_*.ipynb")} for i, name in enumerate(FLOORS)]
    more = [{folder: pages(f"{folder}/*.ipynb")} for folder in ("methods", "datasets", "papers")]
    config.nav = [{"Start": "index.ipynb"}, {"Read these eight": read}, {"Tasks": pages("tasks/*.ipynb")},
                  {"Notebooks": [*floors, *more]},
                  {"Programs": [*pages("[a-z]*.ipynb"), {"labs": pages("labs/*.ipynb")}]},
                  {"API": [{name: f"api/{name}.md"} for name in modules()]}]
    return config


def on_files(files, config):
    "A page for each module."
    for name in modules():
        text = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def inside(match: re.Match) -> str:
    "A link that leads out of nbs/ keeps its text only; one that leads back in loses the way round."
    text, target = match[1], match[2].replace("../nbs/", "")
    if target.startswith(("http", "#")):
        return match[0]
    there = target.partition("#")[0]
    if target.startswith("..") or there.endswith("/") or not there.endswith((".ipynb", ".md", ".png")):
        return text
    return f"[{text}]({target})"


def on_page_markdown(markdown, page, config, files):
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", inside, markdown)


def formula(match: re.Match) -> str:
    "A formula as MathML; what cannot be read stays as it is."
    shown, line = match[1], match[2]
    try:
        return convert(entities.unescape(shown or line), display="block" if shown else "inline")
    except Exception:       # not a formula: two prices in a line
        return match[0]


def formulas(match: re.Match) -> str:
    "The formulas of a piece of prose, outside its code."
    parts = re.split(r"(<code.*?</code>)", match[0], flags=re.DOTALL)
    math = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
    return "".join(part if part.startswith("<code") else math.sub(formula, part) for part in parts)


def on_page_content(html, page, config, files):
    "Notebooks come as HTML: there, the same links, and formulas."
    scripts = re.compile(r"<script\b.*?</script>", re.DOTALL)      # MathJax comes from elsewhere
    html = scripts.sub(lambda m: "" if "mathjax" in m[0].lower() else m[0], html)
    html = re.sub(r"<(p|li|td)>.*?</\1>", formulas, html, flags=re.DOTALL)

    def out(match):
        target = match[1]
        if target.startswith(("http", "#", "mailto:")) or not target.startswith("..") or "nbs/" in target:
            return match[0].replace("../nbs/", "").replace(".ipynb", ".html")
        return match[2]
    return re.sub(r'<a href="(\.\./[^"]+)"[^>]*>(.*?)</a>', out, html, flags=re.DOTALL)
