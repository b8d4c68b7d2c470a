# The hosts that are rendered, and that scenarios run on: name -> module.
{ lib }:
{
  one = ./examples/one.nix;
  ten = ./examples/ten.nix;
  agents = ./examples/agents;
}
// lib.mapAttrs' (file: _: lib.nameValuePair (lib.removeSuffix ".nix" file) (../vm-tests/hosts + "/${file}")) (
  builtins.readDir ../vm-tests/hosts
)
