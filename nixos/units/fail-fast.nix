# Variables by which programs do not try again what is refused: nothing about a refusal passes. dist/fail-fast.env has the same, for hosts without NixOS.
# `wgetrc` is the path of a file with `tries = 1`.
{ wgetrc }:
{
  CARGO_NET_RETRY = "0";
  OPENCODE_DISABLE_LSP_DOWNLOAD = "1";
  PIP_RETRIES = "0";
  UV_HTTP_RETRIES = "0";
  WGETRC = wgetrc;
  YARN_HTTP_RETRY = "0";
  npm_config_fetch_retries = "0";
}
