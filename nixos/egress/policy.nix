# The policy file, as docs/operating.md has it.
{ config, lib }:
let
  inherit (lib) mapAttrs optionalAttrs;
  instances = import ../instances.nix { inherit config lib; };
  inherit (config.services.opencode) egress;

  rule =
    {
      cidr,
      protocol,
      ports,
    }:
    if protocol == "any" && ports == [ ] then
      cidr
    else
      { inherit cidr protocol; } // optionalAttrs (ports != [ ]) { inherit ports; };

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
      allow = isolation.outboundAllowCidrs ++ map rule isolation.outboundAllow;
      deny = isolation.outboundDenyCidrs;
      listen = instances.listeners instance;
      limits = { inherit (instance.resources) sockets; };
    };
in
{
  version = 1;
  log = {
    interval_secs = egress.log.intervalSecs;
    inherit (egress.log) burst;
    per_sec = egress.log.perSec;
  };
  instances = mapAttrs policy instances.isolated;
}
