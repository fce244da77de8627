"""A stand-in for the Hub on this machine, which huggingface_hub's real client talks to.

    repository.py   what a repository holds: files, commits, branches, tags
    faults.py       what goes wrong on purpose
    http.py         requests, answers, routes
    accounts.py     routes: who asks, creating and deleting repositories, checking cards
    reading.py      routes: what is there, and downloads
    writing.py      routes: uploads, commits, branches, tags
    xet.py          the Xet store, by which the client uploads unless told otherwise
    server.py       the server itself
    client.py       points the client of this process, or of another, to a stand-in

A person starts it by ``PYTHONPATH=tests python -m hub``; see __main__.py.
"""

from hub.client import Client
from hub.server import Hub

__all__ = ["Client", "Hub"]
