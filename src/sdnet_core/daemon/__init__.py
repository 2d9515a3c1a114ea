"""The node as a background process, its local HTTP API, and the client of that API.

Importing this package is cheap: the server's parts come in only where a node is run.
"""
