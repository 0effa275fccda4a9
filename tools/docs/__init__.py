"""The documentation site: pages generated from the code and the reference results, navigation, links.

`hooks` is what MkDocs calls; the other modules need no MkDocs and map values to Markdown.
"""
