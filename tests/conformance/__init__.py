"""`make conformance`: real clients, curl and generated requests against a running server."""

NOT_ASKED = ("test_endpoint", "stream_job", "readyz")
"""Operations that no generated request goes to: the first sends one to the address in its body, the second ends when its
job does, and the third answers 503 where no worker runs."""
