"""What a project's own tests do: a server on a port of the kernel's choice, and requests to it."""

import urllib.request


def test_server(httpserver):
    httpserver.expect_request("/left").respond_with_data("reached")
    for _ in range(20):
        assert urllib.request.urlopen(httpserver.url_for("/left")).read() == b"reached"
