"""Adds tokens to the file that a cluster admits by."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deployments.access import digest_of, new_token, read_tokens
from deployments.config import ConfigError

OWNER_ONLY = 0o600


def add_token(path: Path, entry: Mapping[str, Any]) -> str:
    """A new token for `entry` (`deployments.access.Holder` without its digest), which is added to the file.

    Raises:
        ConfigError: the file cannot be read or written, or has a token of that name.
    """
    known = read_tokens(path).values() if path.exists() else ()
    if any(holder.name == entry["name"] for holder in known):
        raise ConfigError(f"{path}: there is a token '{entry['name']}' already; take another name, or delete it first")
    token = new_token()
    said = {"name": entry["name"], "sha256": digest_of(token)}
    said |= {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items() if value}
    text = yaml.safe_dump([said], sort_keys=False)
    try:
        with os.fdopen(
            os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, OWNER_ONLY), "a", encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    read_tokens(path)
    return token
