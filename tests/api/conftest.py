"""Fixtures of the tests that speak HTTP."""

import logging

import pytest

from .harness import serving


@pytest.fixture
async def server():
    async with serving() as running:
        yield running


@pytest.fixture
async def client(server):
    async with server.client() as signed:
        yield signed


@pytest.fixture(autouse=True)
def no_errors_are_logged(request, caplog):
    """What a client does wrong is never an error of ours; a test of real errors is marked by its fixture."""
    yield
    if "errors_expected" not in request.fixturenames:
        records = [record for phase in ("setup", "call", "teardown") for record in caplog.get_records(phase)]
        logged = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
        assert not logged


@pytest.fixture
def errors_expected():
    """This test makes the server fail."""
