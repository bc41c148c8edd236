"""The id of a request, as it is typed."""

import argparse
from uuid import UUID


def request_id(text: str) -> str:
    """Return a UUID as the agent writes it: 36 characters in lower case."""
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError("must be a UUID, such as `uuidgen` prints") from None
