# What several parts of the module derive from the instances.
{ config, lib }:
let
  inherit (lib) attrNames filterAttrs;
  inherit (import ./cidr.nix { inherit lib; }) parseAddress;
  cfg = config.services.opencode;
in
rec {
  # The instances that there are to be, and those of them with a policy.
  enabled = if cfg.enable then filterAttrs (_: instance: instance.enable) cfg.instances else { };
  isolated = filterAttrs (_: instance: instance.networkIsolation.enable) enabled;
  # Those of them with names. They have a resolver.
  named = filterAttrs (_: hasNames) isolated;
  hasNames =
    { networkIsolation, ... }:
    networkIsolation.outboundAllowNames != [ ]
    || networkIsolation.presets != [ ]
    || lib.any (rule: rule.name != null) networkIsolation.outboundAllow;

  # Where the daemon opens resolvers, on loopback, as opencode-egress-common/src/abi.rs has it.
  resolverPorts = {
    from = 22528;
    to = 24575;
  };

  names = attrNames enabled;

  serverUnit = name: "opencode-${name}";
  setupUnit = name: "opencode-${name}-setup";
  pathsUnit = name: "opencode-${name}-paths";
  backupUnit = name: "opencode-${name}-backup";

  # The journal of what an instance prints, and where its pseudo-terminals are.
  logNamespace = name: "opencode-${name}";
  terminals = name: "/run/opencode/pts/${name}";

  # Whether and where the agent reads of its policy, and whether its programs give up at once.
  tells = instance: instance.networkIsolation.enable && instance.networkIsolation.tellAgent;
  told = name: "/etc/opencode-instructions/${name}/network.md";
  failsFast = instance: instance.networkIsolation.enable && instance.networkIsolation.failFast;

  option = name: path: "services.opencode.instances.${name}.${path}";

  environmentFiles =
    instance:
    lib.optional (instance.environmentFile != null) instance.environmentFile
    ++ instance.environmentFiles;

  # The command line as units name it. With its path in the store, an upgrade would change every unit, and so restart every
  # server.
  attachProgram = "/etc/${attachEtcName}";
  attachEtcName = "opencode-egress/bin/opencode-egress";

  # Where an instance listens, as the policy file has it.
  listeners =
    instance:
    [
      {
        inherit (instance.listen) address port;
        open = instance.openFirewall;
      }
    ]
    ++ lib.concatMap (
      port:
      map
        (address: {
          inherit address port;
          open = false;
        })
        [
          "127.0.0.1"
          "::1"
        ]
    ) instance.listen.extraPorts;

  # Whether sockets bound to both addresses at one port would be in each other's way. `::` takes IPv4 as well.
  overlap =
    a: b:
    let
      left = (parseAddress a).value;
      right = (parseAddress b).value;
      covers =
        wide: other:
        wide.isWildcard && (wide.family == 6 || other.family == 4);
    in
    left.canonical == right.canonical || covers left right || covers right left;

  # The user and group that the module makes, if it does.
  ownsUser = name: instance: instance.user == userName name;
  ownsGroup = name: instance: instance.group == userName name;
  userName = import ./user-name.nix { inherit lib; };

  # One directory is the other, or is inside it.
  within = inner: outer: lib.hasPrefix "${outer}/" "${inner}/";
  nested = a: b: within a b || within b a;

  # What an instance may reach. Without isolation the lists say nothing.
  policy =
    instance:
    if !instance.networkIsolation.enable then
      null
    else
      {
        inherit (instance.networkIsolation)
          mode
          outboundAllow
          outboundAllowCidrs
          outboundAllowNames
          outboundDenyCidrs
          ownLoopback
          presets
          ;
      };

  # Pairs of different names, each once.
  pairs =
    list: lib.concatMap (a: map (b: { inherit a b; }) (lib.filter (b: a < b) list)) list;
}
