"""A page of results, built once and rendered as Markdown and as one self-contained HTML file."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

import jinja2
from markupsafe import Markup

from mean_jax.evaluation.report import template_environment
from mean_jax.fileio import atomic_file


@dataclasses.dataclass(frozen=True)
class Cell:
    """A field of a table; the best of its column is set in bold."""

    text: str
    is_best: bool = False


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A titled table; the first `num_heads` fields of a row name it."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    num_heads: int = 1


@dataclasses.dataclass(frozen=True)
class PageFigure:
    """An SVG fragment with its caption; `name` is that of its file."""

    name: str
    title: str
    svg: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Page:
    """What an experiment found."""

    title: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[PageTable]
    figures: Sequence[PageFigure] = ()


def cells(texts: Sequence[str]) -> list[Cell]:
    """Returns plain cells."""
    return [Cell(text) for text in texts]


def render_markdown(page: Page) -> str:
    """Returns the page as Markdown; figures are files beside it."""
    lines = [f"# {page.title}", "", *(f"- {name}: {value}" for name, value in page.facts), ""]
    for figure in page.figures:
        lines += [f"## {figure.title}", "", f"![{figure.title}]({figure.name}.svg)", "", figure.caption, ""]
    for table in page.tables:
        lines += [f"## {table.title}", "", table.note, ""]
        lines += [_markdown_row(table.columns), _markdown_row(["---"] * len(table.columns))]
        lines += [
            _markdown_row([f"**{cell.text}**" if cell.is_best else cell.text for cell in row]) for row in table.rows
        ]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def render_html(page: Page) -> str:
    """Returns the page as HTML that loads nothing and runs no script."""
    loader = jinja2.PackageLoader("mean_jax.experiments", "templates")
    figures = [dataclasses.replace(figure, svg=Markup(figure.svg)) for figure in page.figures]
    page = dataclasses.replace(page, figures=figures)
    return template_environment(loader).get_template("experiment.html.j2").render(page=page)


def write_page(page: Page, folder: Path) -> None:
    """Writes table.md, report.html and an .svg per figure, each atomically."""
    contents = {f"{figure.name}.svg": figure.svg for figure in page.figures}
    contents |= {"table.md": render_markdown(page), "report.html": render_html(page)}
    for name, content in contents.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(content)
