"""One way for commands to answer: a JSON document for programs, or text for people."""

from collections.abc import Mapping

import orjson


def show(facts: Mapping[str, object], as_json: bool, text: str) -> None:
    """Print `facts` as one JSON document with `--json`, else `text`."""
    print(orjson.dumps(facts).decode() if as_json else text)
