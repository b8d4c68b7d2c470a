# Evaluation tests of the module, on nixpkgs' own `lib` and stubs for the rest of NixOS. The value is the list of failures.
{ lib }:
let
  arguments = {
    inherit lib;
    host = import ./host.nix { inherit lib; };
  };

  # Each file: name of a test -> { got, expected }.
  files = lib.genAttrs [
    "assertions"
    "assertions-sandbox"
    "cidr"
    "defaults"
    "egress"
    "examples"
    "options"
    "package"
    "files"
    "units"
    "warnings"
  ] (name: import (./. + "/${name}.nix") arguments);

  # A test that fails to evaluate is a failure, not the end.
  judge =
    file: name:
    { got, expected }:
    let
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
