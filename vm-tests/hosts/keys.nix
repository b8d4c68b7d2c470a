# Servers whose keys opencode-keys.service has: `a` and `b` reach nothing but that, and `free` has no policy. The second host is their provider, and the resolver.
{ lib, ... }:
{
  imports = [ ../common.nix ];

  services.opencode = {
    egress.resolver.upstream = [ "192.0.2.20" ];
    keys.textfile = "/run/opencode-keys.prom";
    instances = {
      a = {
        directory = "/srv/a";
        listen.port = 4101;
        networkIsolation.enable = true;
        providers.anthropic = {
          keyFile = "/run/secrets/a";
          upstream = "https://llm.example.org/v1";
        };
        config.provider.anthropic.options.timeout = 300000;
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
        networkIsolation.enable = true;
        providers.anthropic = {
          keyFile = "/run/secrets/b";
          upstream = "https://llm.example.org/v1";
          models = [ "claude-haiku-4-5" ];
          limit.parallel = 4;
        };
        providers.own = {
          keyFile = "/run/secrets/own";
          upstream = "https://llm.example.org:8443";
          models = [ "small" ];
          limit = {
            requests = 3;
            bytes = 1048576;
          };
        };
        # With models in its paths.
        providers.google = {
          keyFile = "/run/secrets/own";
          upstream = "https://llm.example.org:8443/v1beta";
          models = [ "gemini-2.5-flash" ];
        };
        # More of them than nginx takes in one expression.
        providers.many = {
          keyFile = "/run/secrets/own";
          upstream = "https://llm.example.org:8443";
          models = lib.genList (number: "some-vendor/model-of-a-long-name-${toString number}") 120;
          limit.bytes = 1048576;
        };
        # Of certificates that are not the provider's.
        providers.misnamed = {
          keyFile = "/run/secrets/own";
          upstream = "https://llm.example.org:9443";
          limit.requests = 1;
        };
        providers.untrusted = {
          keyFile = "/run/secrets/own";
          upstream = "https://llm.example.org:9444";
        };
        config.provider.own = {
          npm = "@ai-sdk/openai-compatible";
          models.small = { };
        };
      };
      free = {
        directory = "/srv/free";
        listen.port = 4103;
      };
    };
  };
}
