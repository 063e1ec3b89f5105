"""What a served cluster shows to others: its OpenAPI document is kept to, and its page works in a browser."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytestmark = pytest.mark.ray
