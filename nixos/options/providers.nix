# Providers whose keys the agent never has.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) attrsNamed hostPath parsed;
  inherit (import ../keys/upstream.nix { inherit lib; }) parseHeader parseUpstream;
  inherit (import ../keys/providers.nix) known other;
  names = lib.concatMapStringsSep ", " (name: "`${name}`") (lib.attrNames known);

  problem =
    name:
    if builtins.match "[A-Za-z0-9][A-Za-z0-9_-]{0,63}" name != null then
      null
    else
      "services.opencode.instances.<name>.providers: `${name}` is no provider's name; a path is made of it. Use up to 64 letters, digits, `-` and `_`.";

  provider =
    { name, config, ... }:
    {
      options = {
        keyFile = mkOption {
          type = hostPath;
          example = "/run/secrets/anthropic";
          description = ''
            File with the key, and nothing else: one of sops-nix or agenix, or one that you made. root reads it, when {option}`opencode-keys.service` starts or is reloaded, and when the file
            changes or a link leads to another one; nobody else need be able to, and if everybody or an instance's user can, the service refuses it. A string, so that it is not copied to the world-readable store.
          '';
        };
        upstream = mkOption {
          type = types.nullOr (parsed "baseUrl" "base URL of an API, https" parseUpstream);
          default = (known.${name} or { }).upstream or null;
          defaultText = lib.literalMD "known for ${names}";
          example = "https://llm.example.org/v1";
          description = ''
            Where the provider's API is; for one that is not known it must be said. A certificate of the name in it is asked for, which one of this host's
            authorities ({option}`security.pki`) has signed.
          '';
        };
        header = mkOption {
          type = parsed "header" "HTTP header, maybe with a scheme, as in \"Authorization: Bearer\"" parseHeader;
          default = (known.${name} or other).header;
          defaultText = lib.literalMD "known for the same; `Authorization: Bearer` for others";
          example = "x-api-key";
          description = "Header that the provider takes the key in, and opencode sends it in.";
        };
        models = mkOption {
          type = types.nullOr (types.nonEmptyListOf (types.strMatching (import ../keys/model-name.nix)));
          default = null;
          example = [ "claude-sonnet-4-5" ];
          description = "Models that may be asked for, by the provider's own names; null for all. opencode offers no others.";
        };
        limit = {
          requests = mkOption {
            type = types.nullOr (types.ints.between 1 100000);
            default = null;
            example = 120;
            description = ''
              Requests a minute. So many may come at once, and then one each time that this part of a minute has gone by; others are answered 429, and opencode tries them again. A message takes
              two or more.
            '';
          };
          parallel = mkOption {
            type = types.ints.between 1 4096;
            default = if config.models == null then 512 else 32;
            defaultText = lib.literalMD "512; 32 with `models`";
            description = ''
              Requests at a time, each until nginx has closed its connection, a moment after its answer has ended; others are answered 429, and opencode tries them again. With {option}`models` each may take `limit.bytes` of the memory of
              {option}`opencode-keys.service`, whose limit is that much higher.
            '';
          };
          bytes = mkOption {
            type = types.ints.between 1024 1073741824;
            default = 67108864;
            description = "Bytes of one request. A larger one is answered 413, which opencode takes for a context that is full.";
          };
        };
      };
    };
in
{
  options.providers = mkOption {
    type = attrsNamed problem (types.submodule provider);
    default = { };
    example.anthropic.keyFile = "/run/secrets/anthropic";
    description = ''
      Providers of models whose keys the agent is not to have, by the names that opencode has for them. nginx, in {option}`opencode-keys.service`, puts the key to requests that the instance
      sends to a port of its own on loopback, and passes them on: those of the provider's API for models, and no others. {option}`config` gets the port by itself, and under
      {option}`networkIsolation` the instance needs neither the provider nor a resolver on its lists.
    '';
  };
}
