# The policy file, as docs/operating.md has it.
{ config, lib }:
let
  inherit (lib) mapAttrs optionalAttrs;
  instances = import ../instances.nix { inherit config lib; };
  keyed = import ../keys/keyed.nix { inherit config lib; };
  inherit (config.services.opencode) egress;

  rule =
    {
      cidr,
      name,
      protocol,
      ports,
      tls,
      private,
    }:
    let
      any = lib.elem protocol [ null "any" ];
      some = optionalAttrs (ports != [ ]) { inherit ports; };
    in
    if name != null then
      { inherit name; }
      // optionalAttrs (protocol != null) { inherit protocol; }
      // some
      // optionalAttrs (tls != null) { inherit tls; }
      // optionalAttrs private { inherit private; }
    else if any && ports == [ ] then
      cidr
    else
      {
        inherit cidr;
        protocol = if any then "any" else protocol;
      }
      // some;

  policy =
    name: instance:
    let
      isolation = instance.networkIsolation;
    in
    {
      units = map (unit: "${unit}.service") [
        (instances.serverUnit name)
        (instances.setupUnit name)
      ];
      inherit (isolation) mode;
      allow =
        isolation.outboundAllowCidrs
        ++ map rule isolation.outboundAllow
        ++ map (name: { inherit name; }) isolation.outboundAllowNames
        ++ map (preset: { inherit preset; }) isolation.presets
        ++ lib.optional (keyed.keyed ? ${name}) (keyed.rule name);
      deny = isolation.outboundDenyCidrs;
      listen = instances.listeners instance;
      limits = { inherit (instance.resources) sockets; };
    }
    // optionalAttrs (isolation.errno != "EPERM") { inherit (isolation) errno; }
    // (
      if isolation.ownLoopback then
        { loopback_mark = (import ./mark.nix { inherit config lib; }).loopback.value; }
      else
        { loopback = "listed"; }
    );
in
{
  version = 1;
  log = {
    interval_secs = egress.log.intervalSecs;
    inherit (egress.log) burst;
    per_sec = egress.log.perSec;
  };
  instances = mapAttrs policy instances.isolated // optionalAttrs keyed.exists { keys = keyed.policy; };
}
// optionalAttrs (instances.isolated != { } || keyed.exists) {
  resolver = {
    mark = (import ./mark.nix { inherit config lib; }).value;
  }
  // optionalAttrs (egress.resolver.upstream != [ ]) { inherit (egress.resolver) upstream; };
}
