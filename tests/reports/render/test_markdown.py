"""Tables as Markdown."""

from reading import one_cell

from reports.render.markdown import to_markdown
from reports.tables.table import TableCell


def test_markdown_escapes_what_would_break_the_table():
    text = to_markdown(one_cell(TableCell(text="a|b *c* <d>\n`e`")))
    assert r"| row | a\|b \*c\* \<d> \`e\` |" in text
