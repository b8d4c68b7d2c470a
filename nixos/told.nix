# What an agent is told of its policy: the text of its instructions, of `networkIsolation`. Each message to a model has it, so it is short;
# in audit mode it is empty, for nothing is refused.
{ lib }:
let
  inherit (lib) concatMap concatStringsSep optional;
  inherit (import ./types.nix { inherit lib; }) presets;

  # Of a longer list the rest is counted.
  most = 100;

  # A rule as text, as docs/operating.md has it.
  rule =
    {
      cidr,
      name,
      protocol,
      ports,
      ...
    }:
    let
      isName = name != null;
      place =
        if isName then
          name
        else if ports != [ ] && lib.hasInfix ":" cidr then
          "[${cidr}]"
        else
          cidr;
      usual = if !isName then "any" else if ports == [ ] then null else "tcp";
    in
    place
    + lib.optionalString (ports != [ ]) ":${concatStringsSep "," ports}"
    + lib.optionalString (protocol != null && protocol != usual) "/${protocol}";

  # As programs have them.
  messages = {
    EPERM = "Operation not permitted";
    ECONNREFUSED = "Connection refused";
    EHOSTUNREACH = "No route to host";
    ENETUNREACH = "Network is unreachable";
  };
  error = errno: "${errno}, \"${messages.${errno}}\"";

  # Under `listed` it is not so.
  ownServers = "Servers that you start yourself work: bind 127.0.0.1 or ::1, from port 1024 on, and connect there.\n\n";

  # A line of the list, if there is one.
  line =
    before: rules:
    let
      more = lib.length rules - most;
      shown = map (text: "`${text}`") (lib.take most rules) ++ optional (more > 0) "and ${toString more} more";
    in
    optional (rules != [ ]) "- ${before}${concatStringsSep ", " shown}";
in
{
  errno,
  mode,
  outboundAllow,
  outboundAllowCidrs,
  outboundAllowNames,
  outboundDenyCidrs,
  ownLoopback,
  ...
}@isolation:
let
  ofKind = isName: map rule (lib.filter (rule: (rule.name != null) == isName) outboundAllow);
  names = outboundAllowNames ++ ofKind true ++ concatMap (name: presets.${name}.allow) isolation.presets;
  reachable =
    line "" (lib.unique names)
    ++ line "" (lib.unique (outboundAllowCidrs ++ ofKind false))
    ++ line "but not " (lib.unique outboundDenyCidrs);
in
if mode == "audit" then
  ""
else
  lib.replaceStrings
    (
      [
        "@REACHABLE@"
        "@ERRNO@"
      ]
      ++ optional (!ownLoopback) ownServers
    )
    (
      [
        (concatStringsSep "\n" (if reachable == [ ] then [ "- nothing" ] else reachable))
        (concatStringsSep ", or with " (lib.unique [ (error errno) (error "EPERM") ]))
      ]
      ++ optional (!ownLoopback) ""
    )
    (lib.readFile ../dist/network.md)
