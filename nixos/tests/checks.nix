# Evaluation tests of the module. The value is the list of failures. host.nix has the other arguments.
{ lib, ... }@hosts:
let
  arguments = {
    inherit lib;
    host = import ./host.nix hosts;
  };

  # Each file: name of a test -> { got, expected }.
  files = lib.genAttrs [
    "asking"
    "assertions"
    "assertions-paths"
    "assertions-sandbox"
    "changed-units"
    "cidr"
    "cross"
    "defaults"
    "dns-names"
    "dns-names-said"
    "egress"
    "examples"
    "options"
    "package"
    "files"
    "firewall"
    "listeners"
    "keys"
    "names"
    "nixos-rules"
    "template"
    "told"
    "log-level"
    "migrating"
    "units"
    "units-limits"
    "warnings"
  ] (name: import (./. + "/${name}.nix") arguments);

  # Packages are their paths: what is in one has no end.
  plain =
    value:
    if lib.isDerivation value then
      toString value
    else if lib.isAttrs value then
      lib.mapAttrs (_: plain) value
    else if lib.isList value then
      map plain value
    else
      value;

  # A test that fails to evaluate is a failure, not the end.
  judge =
    file: name: test:
    let
      got = plain test.got;
      expected = plain test.expected;
      result = builtins.tryEval (builtins.deepSeq got (got == expected));
    in
    if result.success && result.value then
      [ ]
    else
      [
        {
          name = "${file}: ${name}";
          inherit expected;
          got = if result.success then got else "does not evaluate";
        }
      ];
in
lib.concatLists (
  lib.mapAttrsToList (file: tests: lib.concatLists (lib.mapAttrsToList (judge file) tests)) files
)
