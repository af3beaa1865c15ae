"""What `/openapi.json` documents, asked with whatever its schemas allow, and with what they do not."""

from contextlib import suppress

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

# Schemathesis makes these bodies slowly; that is no fault of theirs.
SETTINGS = hypothesis.settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_that_is_sent_is_a_server_error(base_url: str, mode: GenerationMode) -> None:
    documented = schemathesis.openapi.from_url(base_url.removesuffix("/v1") + "/openapi.json")
    operations = [operation.ok() for operation in documented.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/score", "/route"}
    for operation in operations:

        @SETTINGS
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=[not_a_server_error], timeout=60)

        with suppress(hypothesis.errors.Unsatisfiable):  # it takes nothing that could be wrong
            ask()
