# Providers that cannot work, or whose keys would not be kept from the agent.
{ config, lib, ... }:
let
  inherit (lib) attrNames concatMap filter length mapAttrsToList optional;
  instances = import ../instances.nix { inherit config lib; };
  keyed = import ./keyed.nix { inherit config lib; };
  inherit (instances) enabled option within;
  inherit (import ../paths.nix { inherit config lib; }) writable;
  inherit (import ../cidr.nix { inherit lib; }) contains;

  problem = bad: message: optional bad { assertion = false; inherit message; };

  ofProvider =
    name: instance: provider: settings:
    let
      place = option name "providers.${provider}";
      configured = lib.defaultTo { } (
        lib.defaultTo { } (lib.defaultTo { } instance.config.provider).${provider} or null
      ).options or null;
      given = filter (key: configured.${key} or null != null) [ "apiKey" "baseURL" ];
      set = filter (variable: instance.environment ? ${variable}) (keyed.variables instance provider);
    in
    problem (settings.upstream == null)
      "${place}.upstream is not set, and `${provider}` is none of the providers that are known (${lib.concatStringsSep ", " (attrNames (import ./providers.nix).known)}). Write the base URL of its API, as in \"https://llm.example.org/v1\", or correct the name."
    ++ problem (lib.hasPrefix "${builtins.storeDir}/" settings.keyFile)
      "${place}.keyFile (${settings.keyFile}) is in the store, where everybody on this host can read it, the agent included. Have the file made at run time, by sops-nix, agenix or by hand, and give its path as a string."
    ++ concatMap (
      where:
      problem (within settings.keyFile where.path)
        "${place}.keyFile (${settings.keyFile}) is in ${option where.name where.setting} (${where.path}), which an agent may change, and read. Put the file where only root writes, such as /run/secrets."
    ) writable
    ++ problem (given != [ ])
      "${option name "config"}.provider.${provider}.options has ${lib.concatStringsSep " and " given}, and with ${place} it is opencode-keys.service that the server asks, without a key. Remove ${if length given == 1 then "it" else "them"}; the provider's own base URL goes to ${place}.upstream."
    ++ problem (set != [ ])
      "${option name "environment"} has ${lib.concatStringsSep " and " set}, so the agent would have the key that ${place} keeps from it, and so would everybody who reads the store. Remove it.";

  ofInstance =
    name: instance:
    problem (instance.configFile != null)
      "${option name "providers"}: ${option name "configFile"} is used as it is, so the server would not know where its providers are. Write the configuration as ${option name "config"}."
    ++ concatMap (
      cidr:
      problem (contains cidr "127.0.0.1")
        "${option name "networkIsolation.outboundDenyCidrs"} has ${cidr}, and with it the instance would not reach 127.0.0.1, where opencode-keys.service has its providers. Remove it; what is not listed is denied anyway."
    ) (lib.optionals instance.networkIsolation.enable instance.networkIsolation.outboundDenyCidrs)
    ++ concatMap lib.id (mapAttrsToList (ofProvider name instance) instance.providers);

  # Of every instance, with providers or without: what has another's port is sent its token.
  ofListeners =
    name: instance:
    concatMap (
      listener:
      concatMap (
        other:
        problem (listener.port == keyed.ports.${other} && instances.overlap listener.address "127.0.0.1")
          "${option name "listen"}: port ${toString listener.port} is where opencode-keys.service has the providers of `${other}`. Choose another."
      ) (attrNames keyed.ports)
    ) (instances.listeners instance);

  ofPair =
    { a, b }:
    problem (enabled.${a}.user == enabled.${b}.user && (enabled.${a}.providers != { } || enabled.${b}.providers != { }))
      "${option a "user"} and ${option b "user"} are both `${enabled.${a}.user}`, and one of them has `providers`: the other could read its token, and spend its keys. Leave `user` out.";
in
{
  assertions =
    concatMap (
      suffix:
      problem (enabled ? ${suffix})
        "services.opencode.instances.${suffix}: its unit would be opencode-${suffix}.service, which is of what has the providers' keys. Call the instance something else."
    ) [ "keys" "keys-count" "keys-gone" "keys-reload" ]
    ++ problem (length (attrNames keyed.keyed) > 16)
      "services.opencode.instances: ${toString (length (attrNames keyed.keyed))} instances have `providers`, and opencode-keys.service has room for 16, one port for each. Leave the option out of the others, which then have keys of their own in `environmentFile`."
    ++ concatMap lib.id (mapAttrsToList ofInstance (lib.filterAttrs (_: instance: instance.providers != { }) enabled))
    ++ concatMap lib.id (mapAttrsToList ofListeners enabled)
    ++ concatMap ofPair (instances.pairs instances.names);
}
