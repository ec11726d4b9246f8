"""Pages of the dashboard, as a browser gets them."""

from __future__ import annotations

from flask.testing import FlaskClient

from neat_backend.web.shown import TABS

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
PATHS = {name: "/projects/7" + ("" if name == "project" else f"/{name}") for name, _ in TABS}


def page(client: FlaskClient, path: str = "/projects/7") -> str:
    answer = client.get(path, headers=HTML)
    assert answer.status_code == 200
    return answer.get_data(as_text=True)
