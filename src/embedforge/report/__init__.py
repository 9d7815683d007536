"""What a page shows, and how: a self-contained HTML report, and charts as inline SVG.

Read `page.Report` first: verdicts, tables, charts and example queries as data, which the verbs fill and
`page.write_report` makes a page of.
"""
