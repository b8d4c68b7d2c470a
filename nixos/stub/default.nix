# A host without nixpkgs: the module, evaluated by nixpkgs' `lib` with stubs for the rest.
{
  lib,
  pkgs ? import ./pkgs.nix { inherit lib; },
}:
modules:
lib.evalModules {
  modules = [
    ../default.nix
    ./options.nix
    { _module.args = { inherit pkgs; }; }
  ]
  ++ modules;
}
