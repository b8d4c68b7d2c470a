# A server whose agent is told of its policy; with a model on the second host, instructions of the operator's own, and a plugin that npm would have to
# bring, which the policy refuses.
{ lib, ... }:
{
  imports = [ ../common.nix ];

  services.opencode.instances.a = {
    directory = "/srv/a";
    listen.port = 4101;
    environmentFile = "/run/secrets/a";
    environment = {
      # Plugins are wanted here.
      OPENCODE_PURE = lib.mkForce "false";
      CARGO_NET_RETRY = "2";
    };
    config = {
      instructions = [ "RULES.md" ];
      plugin = [ "opencode-no-such-plugin@1.0.0" ];
      provider.second = {
        npm = "@ai-sdk/openai-compatible";
        options.baseURL = "http://192.0.2.20:8080/v1";
        options.apiKey = "unused";
        models.left = { };
      };
    };
    networkIsolation = {
      enable = true;
      outboundAllowNames = [ "listed.example.org" ];
      outboundAllow = [
        {
          cidr = "192.0.2.20/32";
          protocol = "tcp";
          ports = [ 8080 ];
        }
      ];
    };
  };
}
