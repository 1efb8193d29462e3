"""The fake server of the clients' tests, which harvests ask too."""

from __future__ import annotations

from tests.client.conftest import service as service
from tests.client.conftest import target as target
