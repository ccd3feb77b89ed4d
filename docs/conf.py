"""The documentation as a site: see CONTRIBUTING.md for the command that builds it."""

import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from gdtrain import __version__

ROOT = Path(__file__).resolve().parent.parent

project = "gdtrain"
author = copyright = "The gdtrain maintainers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
copybutton_prompt_text = ">>> |... "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "gdtrain"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "exclude-members": "metrics"}
nitpicky = False

# "data: inputs and targets", "start, stop: learning rates": what an argument or attribute is.
NAMED = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def as_rest(app, what, name, obj, options, lines):
    """Turn a docstring of this project, prose that a terminal shows, into reStructuredText."""
    lines[:] = [line for block in blocks_of(lines) for line in (*written(block), "")]


def escaped(line):
    """The line with |x|, a size and no substitution, as it is."""
    parts = re.split(r"(``.*?``)", line)
    return "".join(p if p.startswith("``") else p.replace("|", r"\|") for p in parts)


def blocks_of(lines):
    """The paragraphs of a docstring, each a list of lines."""
    block = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def written(block):
    """A paragraph: code as it is, lines that name arguments as a list, indented lines literally."""
    first = block[0]
    if first.startswith((">>> ", "* ", "- ", ".. ")):
        return block
    if first.startswith(" "):
        return ["::", "", *("    " + line for line in block)]
    out, in_list = [], False
    for line in map(escaped, block):
        if named := NAMED.fullmatch(line):
            if not in_list:
                out.append("")
            in_list = True
            out.append(f"- **{named[1].replace('*', chr(92) + '*')}**: {named[2]}")
        elif in_list:
            out.append("  " + line.strip())
        elif line.startswith(" "):
            out.append(line.strip())
        else:
            out.append(line)
    return out


class Notebook(SphinxDirective):
    """The cells of a notebook, with the outputs that it was saved with."""

    required_arguments = 1

    def run(self):
        path = Path(self.env.doc2path(self.env.docname)).parent / self.arguments[0]
        self.env.note_dependency(str(path.resolve()))
        return [
            node
            for cell in json.loads(path.read_text("utf-8"))["cells"]
            for node in self.nodes_of(cell, "".join(cell["source"]))
        ]

    def nodes_of(self, cell, source):
        if cell["cell_type"] == "markdown":
            return self.parse_text_to_nodes(source)
        text = "".join(line for output in cell["outputs"] for line in output.get("text", []))
        shown = [nodes.literal_block(source, source, language="python")]
        if text:
            shown.append(nodes.literal_block(text, text, language="text"))
        for output in cell["outputs"]:
            if picture := output.get("data", {}).get("image/png"):
                alt, data = cell["metadata"]["alt"], "".join(picture).strip()
                tag = f'<img src="data:image/png;base64,{data}" alt="{alt}">'
                shown.append(nodes.raw("", tag, format="html"))
        return shown


def setup(app):
    app.add_directive("notebook", Notebook)
    app.connect("autodoc-process-docstring", as_rest)
