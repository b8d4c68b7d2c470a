# dist/opencode-keys.conf and dist/opencode-keys-gone.conf: what nginx.nix makes for one instance with two providers, for hosts without NixOS. `cargo
# xtask render` writes them.
{ lib }:
let
  inherit (import ./upstream.nix { inherit lib; }) parseHeader parseUpstream;
  inherit (import ./providers.nix) known;
  nginx = import ./nginx.nix { inherit lib; };
  port = 20480;
  provider = id: name: {
    inherit id;
    models = null;
    limit = {
      requests = null;
      parallel = 512;
      bytes = 67108864;
    };
    upstream = (parseUpstream known.${name}.upstream).value;
    header = (parseHeader known.${name}.header).value;
    inherit (known.${name}) requests;
  };
in
{
  "opencode-keys.conf" = nginx.config {
    runtime = "/run/opencode-keys";
    trusted = "/etc/ssl/certs/ca-certificates.crt";
    resolver = "127.0.0.53";
    instances.my-project = {
      inherit port;
      providers = {
        anthropic = provider "0" "anthropic";
        openai = provider "1" "openai";
      };
    };
  };
  "opencode-keys-gone.conf" = nginx.gone {
    runtime = "/run/opencode-keys-gone";
    ports = [ port ];
  };
}
